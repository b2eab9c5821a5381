//! All that the disk is at a moment: names, files, and who has them open.
//!
//! Owns: what a power cut does to it as a whole.
//! Never: fails or waits: faults are met before it is asked.
//! Invariant: a file lives as long as a name, a pending change of names or a handle leads to it.

use super::cut::{Cut, Loose, What};
use super::file::Shared;
use super::image::Image;
use super::names::Names;
use super::page::Fate;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of the whole disk, unless it is told otherwise.
const DISK_BYTES: u64 = 4 << 30;

#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) names: Names,
    files: BTreeMap<u64, Arc<Image>>,
    next_id: u64,
    stamp: u64,
    pub(super) capacity: u64,
    pub(super) era: u64,
    pub(super) process: Process,
}

/// What a process on the machine holds. The next one, and a disk elsewhere, know nothing of it.
#[derive(Debug, Default)]
pub(super) struct Process {
    pub(super) locked: bool,
    pub(super) open: BTreeMap<u64, usize>,
    pub(super) shared: BTreeMap<u64, Shared>,
}

impl Clone for Process {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl State {
    pub(super) fn empty() -> Self {
        Self {
            names: Names::default(),
            files: BTreeMap::new(),
            next_id: 0,
            stamp: 0,
            capacity: DISK_BYTES,
            era: 0,
            process: Process::default(),
        }
    }

    pub(super) fn add(&mut self, image: Image) -> u64 {
        self.next_id += 1;
        self.files.insert(self.next_id, Arc::new(image));
        self.next_id
    }

    pub(super) fn image(&self, id: u64) -> &Image {
        &self.files[&id]
    }

    pub(super) fn image_mut(&mut self, id: u64) -> &mut Image {
        let image = self.files.get_mut(&id).expect("a file lives as long as a name or a handle");
        Arc::make_mut(image)
    }

    pub(super) fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    pub(super) fn used(&self) -> u64 {
        let ids: BTreeSet<u64> = self.names.files().map(|(_, id)| id).collect();
        ids.into_iter().map(|id| self.image(id).len).sum()
    }

    pub(super) fn close(&mut self, id: u64) {
        let open = self.process.open.get_mut(&id).expect("it was opened");
        *open -= 1;
        if *open == 0 {
            self.process.open.remove(&id);
            self.drop_unnamed();
        }
    }

    /// Gives up the files that no name and no handle leads to.
    pub(super) fn drop_unnamed(&mut self) {
        let Self { names, files, process, .. } = self;
        files.retain(|id, _| process.open.contains_key(id) || names.is_named(*id));
        process.shared.retain(|id, _| files.contains_key(id));
    }

    pub(super) fn flush_device(&mut self) {
        for image in self.files.values_mut().filter(|image| !image.is_clean()) {
            Arc::make_mut(image).flush_device();
        }
    }

    pub(super) fn loose(&self) -> Vec<Loose> {
        let mut loose = Vec::new();
        for (file, image) in &self.files {
            loose.extend(image.dirty().map(|(number, page)| {
                let what = What::Page { file: *file, page: number, versions: page.versions() };
                Loose { what, stamp: page.stamp }
            }));
        }
        loose.extend(self.names.pending().map(|stamp| Loose { what: What::Name, stamp }));
        loose
    }

    pub(super) fn crash(&mut self, cut: Cut) {
        let loose = self.loose();
        let mut fates: BTreeMap<u64, BTreeMap<u64, Fate>> = BTreeMap::new();
        let mut kept = Vec::new();
        for (loose, fate) in loose.iter().zip(cut.fates(&loose)) {
            match loose.what {
                What::Page { file, page, .. } => {
                    fates.entry(file).or_default().insert(page, fate);
                }
                What::Name => kept.push(fate == Fate::Kept),
            }
        }
        self.names.crash(|number| kept[number]);
        self.process = Process::default();
        self.era += 1;
        self.drop_unnamed();
        for (id, image) in self.files.iter_mut().filter(|(_, image)| !image.is_clean()) {
            Arc::make_mut(image).crash(&fates.remove(id).unwrap_or_default());
        }
    }
}
