//! A log does what a list does, on both ways to store, which leave the same bytes.

#![allow(clippy::unwrap_used, reason = "a test may unwrap")]

mod common;

use common::model::{Step, steps};
use common::subject::Subject;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weir_sim::disk::SimDisk;
use weir_storage::{Backend, Disk, OsDisk};

/// Does the steps and leaves the log closed.
fn run(disk: Arc<dyn Disk>, root: &Path, steps: &[Step]) {
    let mut subject = Subject::new(disk, root.to_owned());
    subject.open().unwrap();
    for step in steps {
        subject.step(step).unwrap();
    }
    let held = subject.model.held.clone();
    assert!(subject.contents() == held);
    subject.step(&Step::Reopen).unwrap();
    assert!(subject.contents() == held, "after the last start");
    subject.log = None;
    subject.check_shared();
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let file = |item: std::fs::DirEntry| {
        (item.file_name().into_string().unwrap(), std::fs::read(item.path()).unwrap())
    };
    names.map(file).collect()
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(6))]

    #[test]
    fn both_backends_do_what_a_list_does_and_leave_the_same_bytes(steps in steps(30)) {
        // Who holds bytes of a map keeps its file from being used again, and of pwrite does not.
        let is_held = |step: &Step| matches!(step, Step::ReadIndex(..) | Step::ReadOffset(..));
        let steps: Vec<Step> = steps.into_iter().filter(|step| !is_held(step)).collect();
        let [by_map, by_pwrite] = [Backend::Map, Backend::Pwrite].map(|backend| {
            let folder = tempfile::tempdir().unwrap();
            run(Arc::new(OsDisk::new(backend)), folder.path(), &steps);
            files(&folder.path().join("p"))
        });
        prop_assert!(by_map.keys().eq(by_pwrite.keys()));
        prop_assert!(by_map == by_pwrite);
    }
}

proptest! {
    #![proptest_config(config(30))]

    #[test]
    fn a_log_does_what_a_list_does(steps in steps(60)) {
        run(Arc::new(SimDisk::new()), Path::new("/data"), &steps);
    }
}
