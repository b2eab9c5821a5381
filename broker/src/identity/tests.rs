use super::*;
use weir_storage::{Backend, OsDisk};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn disk() -> OsDisk {
    OsDisk::new(Backend::Map)
}

fn forming() -> Identity {
    Identity {
        broker: BrokerId(2),
        cluster: 0xC1,
        state: MemberState::Forming,
        token: 0x70,
        founders: Founders { brokers: 3, voters: 3 },
        metadata_replica: ReplicaId(2),
        is_opened: false,
    }
}

/// Every bit of a stored identity, flipped, is refused.
fn flip_every_bit(root: &Path) {
    let path = root.join(NAME);
    let whole = std::fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        let opened = Identity::open_among(&disk(), root, 79);
        assert!(matches!(opened, Err(IdentityError::Damaged(_))), "bit {bit}: {opened:?}");
    }
    for cut in [0, 63, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        let opened = Identity::open_among(&disk(), root, 79);
        assert!(matches!(opened, Err(IdentityError::Damaged(_))), "cut {cut}: {opened:?}");
    }
    std::fs::write(&path, &whole).unwrap();
}

#[test]
fn an_identity_is_made_once_and_never_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let made = Identity::open(&disk(), folder.path(), 77).unwrap();
    assert_eq!(Identity::open(&disk(), folder.path(), 78).unwrap(), made);
    assert_eq!((made.cluster, made.broker, made.state), (77, FOUNDER, MemberState::Member));
    flip_every_bit(folder.path());
    assert_eq!(Identity::open(&disk(), folder.path(), 78).unwrap(), made);
}

#[test]
fn a_broker_that_is_alone_writes_what_older_builds_read() {
    let folder = tempfile::tempdir().unwrap();
    Identity::open(&disk(), folder.path(), 77).unwrap();
    let bytes = std::fs::read(folder.path().join(NAME)).unwrap();
    let golden = concat!(
        "574549524e4f44017c4c9ef801000000",
        "01000000000000004d000000000000000000000000000000",
        "000000000000000000000000000000000000000000000000",
    );
    assert_eq!(hex(&bytes), golden);
}

#[test]
fn version_2_has_its_golden_bytes() {
    let folder = tempfile::tempdir().unwrap();
    forming().store(&disk(), folder.path()).unwrap();
    let bytes = std::fs::read(folder.path().join(NAME)).unwrap();
    let golden = concat!(
        "574549524e4f4401e3f5c04602000000",
        "0200000000000000c1000000000000000000000000000000",
        "010070000000000000000000000000000000030003000000",
        "0200000000000000000000000000000000000000000000000000000000000000",
    );
    assert_eq!(hex(&bytes), golden);
    assert_eq!(Identity::open_among(&disk(), folder.path(), 5).unwrap(), forming());
    flip_every_bit(folder.path());
    assert_eq!(Identity::open_among(&disk(), folder.path(), 5).unwrap(), forming());
}

#[test]
fn an_empty_directory_among_others_gets_a_token_before_an_id() {
    let folder = tempfile::tempdir().unwrap();
    let made = Identity::open_among(&disk(), folder.path(), 0).unwrap();
    assert_eq!((made.state, made.token, made.cluster), (MemberState::Empty, 1, 0));
    assert_eq!(Identity::open_among(&disk(), folder.path(), 9).unwrap(), made);
    let alone = Identity::open(&disk(), folder.path(), 9);
    assert!(matches!(alone, Err(IdentityError::NoSeeds(_))), "{alone:?}");
}

#[test]
fn a_broker_that_was_alone_keeps_its_cluster_and_gets_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let alone = Identity::open(&disk(), folder.path(), 77).unwrap();
    let among = Identity::open_among(&disk(), folder.path(), 5).unwrap();
    assert_eq!(among, Identity { token: 5, ..alone });
    assert_eq!(Identity::open_among(&disk(), folder.path(), 6).unwrap(), among);
}

#[test]
fn what_a_crash_left_half_written_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("node.meta.new"), [7; 30]).unwrap();
    let made = Identity::open_among(&disk(), folder.path(), 3).unwrap();
    std::fs::write(folder.path().join("node.meta.new"), [7; 300]).unwrap();
    assert_eq!(Identity::open_among(&disk(), folder.path(), 4).unwrap(), made, "not yet renamed");
    forming().store(&disk(), folder.path()).unwrap();
    assert_eq!(Identity::open_among(&disk(), folder.path(), 4).unwrap(), forming());
}

#[test]
fn as_many_vote_as_fit_the_brokers() {
    let voters = |brokers, wanted| Founders::new(brokers, wanted).voters;
    assert_eq!([1, 2, 3, 6, 7, 64].map(|brokers| voters(brokers, 0)), [1, 1, 3, 3, 5, 5]);
    assert_eq!([1, 3, 5].map(|wanted| voters(5, wanted)), [1, 3, 5]);
    assert_eq!(voters(3, 5), 3, "not more than there are brokers");
    assert_eq!(Founders::new(3, 0).voters(), [1, 2, 3].map(|n| (ReplicaId(n), BrokerId(n))));
}

#[test]
fn an_empty_metadata_log_means_what_the_identity_says() {
    let founder = forming();
    assert_eq!(founder.metadata_birth(), Birth::Forms);
    let opened = Identity { is_opened: true, ..founder };
    assert_eq!(opened.metadata_birth(), Birth::Continues);
    let joined =
        Identity { founders: Founders::default(), metadata_replica: ReplicaId(9), ..founder };
    assert_eq!((joined.metadata_birth(), joined.founding()), (Birth::Joins, None));
    let learner = Identity { metadata_replica: ReplicaId(4), ..founder };
    assert_eq!(learner.metadata_birth(), Birth::Joins);
    let founding = Command::Found { cluster: 0xC1, brokers: 3, voters: 3 };
    assert_eq!(founder.founding(), Some(founding));
    let alone = Identity::alone(7);
    assert_eq!(alone.founding(), Some(Command::Form { cluster: 7, broker: FOUNDER }));
}
