//! Which file has which name, now and after a power cut.
//!
//! Owns: folders, names, and the changes of both that no `sync_dir` made durable yet.
//! Never: knows what is in a file.
//! Invariant: within one folder a rename is one change; between two it is one in each.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Folder,
    File(u64),
}

type Tree = BTreeMap<PathBuf, Node>;

#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    now: Tree,
    durable: Tree,
    pending: Vec<Change>,
    /// Folders that stand in none of ours.
    roots: BTreeSet<PathBuf>,
}

/// What becomes durable at once, with its folder.
#[derive(Debug, Clone)]
struct Change {
    folder: PathBuf,
    stamp: u64,
    sets: Vec<(PathBuf, Option<Node>)>,
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

impl Change {
    fn apply(&self, tree: &mut Tree) {
        for (path, node) in &self.sets {
            match node {
                Some(node) => drop(tree.insert(path.clone(), *node)),
                // With a folder goes what is in it.
                None => tree.retain(|name, _| !name.starts_with(path)),
            }
        }
    }
}

impl Names {
    pub(super) fn file(&self, path: &Path) -> io::Result<u64> {
        match self.now.get(path) {
            Some(Node::File(id)) => Ok(*id),
            _ => Err(missing()),
        }
    }

    pub(super) fn is_folder(&self, path: &Path) -> io::Result<()> {
        if self.now.get(path) == Some(&Node::Folder) { Ok(()) } else { Err(missing()) }
    }

    /// Every file that has a name now, with its path.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, u64)> {
        self.now.iter().filter_map(|(path, node)| match node {
            Node::File(id) => Some((path.as_path(), *id)),
            Node::Folder => None,
        })
    }

    /// Whether the file has a name, or may have one after a power cut.
    pub(super) fn is_named(&self, id: u64) -> bool {
        let of = |node: &Node| *node == Node::File(id);
        let sets = self.pending.iter().flat_map(|change| &change.sets);
        self.now.values().chain(self.durable.values()).any(of)
            || sets.into_iter().any(|(_, node)| node.as_ref().is_some_and(of))
    }

    fn change(&mut self, stamp: u64, folder: &Path, sets: Vec<(PathBuf, Option<Node>)>) {
        let change = Change { folder: folder.to_owned(), stamp, sets };
        change.apply(&mut self.now);
        self.pending.push(change);
    }

    /// A folder that stands in none of ours is there for good: somebody else made the one above.
    pub(super) fn create_dir(&mut self, path: &Path, stamp: u64) {
        let missing = path.ancestors().take_while(|path| !self.now.contains_key(*path));
        let missing: Vec<&Path> = missing.collect();
        let top = missing.last().map(|path| folder_of(path));
        if top.is_none_or(|top| self.now.contains_key(top)) {
            for path in missing.into_iter().rev() {
                let sets = vec![(path.to_owned(), Some(Node::Folder))];
                self.change(stamp, folder_of(path), sets);
            }
        } else {
            self.roots.insert(path.to_owned());
            self.now.insert(path.to_owned(), Node::Folder);
            self.durable.insert(path.to_owned(), Node::Folder);
        }
    }

    pub(super) fn check_free(&self, path: &Path) -> io::Result<()> {
        self.is_folder(folder_of(path))?;
        if self.now.contains_key(path) { Err(io::ErrorKind::AlreadyExists.into()) } else { Ok(()) }
    }

    pub(super) fn create(&mut self, path: &Path, id: u64, stamp: u64) {
        self.change(stamp, folder_of(path), vec![(path.to_owned(), Some(Node::File(id)))]);
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path, stamp: u64) -> io::Result<()> {
        let id = self.file(from)?;
        self.is_folder(folder_of(to))?;
        let gone = (from.to_owned(), None);
        let there = (to.to_owned(), Some(Node::File(id)));
        if folder_of(from) == folder_of(to) {
            self.change(stamp, folder_of(from), vec![gone, there]);
        } else {
            self.change(stamp, folder_of(to), vec![there]);
            self.change(stamp, folder_of(from), vec![gone]);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path, stamp: u64) -> io::Result<()> {
        self.file(path)?;
        self.change(stamp, folder_of(path), vec![(path.to_owned(), None)]);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path, stamp: u64) -> io::Result<()> {
        self.is_folder(path)?;
        let below = self.now.keys().filter(|name| name.starts_with(path)).rev();
        for name in below.cloned().collect::<Vec<_>>() {
            let folder = folder_of(&name).to_owned();
            self.change(stamp, &folder, vec![(name, None)]);
        }
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        self.is_folder(path)?;
        for change in std::mem::take(&mut self.pending) {
            if change.folder != path {
                self.pending.push(change);
                continue;
            }
            change.apply(&mut self.durable);
            for (gone, _) in change.sets.iter().filter(|(_, node)| node.is_none()) {
                self.pending.retain(|change| !change.folder.starts_with(gone));
            }
        }
        Ok(())
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.is_folder(path)?;
        let inside = self.now.keys().filter(|name| name.parent() == Some(path));
        let names = inside.filter_map(|name| name.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    /// When each of the pending changes was made.
    pub(super) fn pending(&self) -> impl Iterator<Item = u64> {
        self.pending.iter().map(|change| change.stamp)
    }

    /// The power goes: `kept` tells which of the pending changes are durable. A name in a folder
    /// that is not there is gone.
    pub(super) fn crash(&mut self, mut kept: impl FnMut(usize) -> bool) {
        for (number, change) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            if kept(number) {
                change.apply(&mut self.durable);
            }
        }
        self.now.clear();
        // In order: a folder comes before what is in it.
        for (path, node) in std::mem::take(&mut self.durable) {
            let folder = self.now.get(folder_of(&path));
            if folder == Some(&Node::Folder) || self.roots.contains(&path) {
                self.now.insert(path, node);
            }
        }
        self.durable = self.now.clone();
    }

    /// Names a file durably, with the folder around it.
    pub(super) fn place(&mut self, path: &Path, id: u64) {
        let folder = folder_of(path);
        if self.is_folder(folder).is_err() {
            self.create_dir(folder, 0);
            self.durable.insert(folder.to_owned(), Node::Folder);
        }
        self.now.insert(path.to_owned(), Node::File(id));
        self.durable.insert(path.to_owned(), Node::File(id));
    }

    /// Loses a name, as damage does.
    pub(super) fn lose(&mut self, path: &Path) {
        self.now.remove(path);
        self.durable.remove(path);
        self.pending.iter_mut().for_each(|change| change.sets.retain(|(name, _)| name != path));
    }
}
