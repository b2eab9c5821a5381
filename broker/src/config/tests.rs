use super::*;

fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weir.toml");
    std::fs::write(&path, file).unwrap();
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    Config::load(Some(&path), environment, &Overrides::default())
}

fn error_of(file: &str) -> String {
    load(file, &[]).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn the_defaults_and_the_example_are_configurations() {
    assert!(Config::load(None, [], &Overrides::default()).is_ok());
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/weir.example.toml");
    let config = Config::load(Some(Path::new(example)), [], &Overrides::default()).unwrap();
    let named = config.effective().into_iter().filter(|s| matches!(s.origin, Origin::File(_)));
    assert_eq!(named.count(), SETTINGS.len(), "the example names every setting");
}

#[test]
fn the_nearer_source_wins_and_its_origin_is_known() {
    let file = "[limits]\nconnections = 5\n[flow]\npool = \"8MiB\"";
    let config = load(file, &[("WEIR__LIMITS__CONNECTIONS", "6"), ("PATH", "x")]).unwrap();
    assert_eq!((config.connections, config.pool_cost), (6, 8 << 20));
    let origin = |key| {
        let found = config.effective().into_iter().find(|setting| setting.key == key);
        found.unwrap().origin.to_string()
    };
    assert_eq!(origin("limits.connections"), "WEIR__LIMITS__CONNECTIONS");
    assert!(origin("flow.pool").ends_with("weir.toml"));
    assert_eq!(origin("log.level"), "default");
}

#[test]
fn what_is_wrong_is_named_with_what_to_write_instead() {
    let cases = [
        (
            "[limits]\nconections = 5",
            "limits.conections is not a setting; did you mean limits.connections?",
        ),
        ("[wrong]\nx = 1", "wrong.x is not a setting"),
        ("top = 1", "top is not a setting"),
        ("[flow]\npool = 4194304", "write a size with its unit"),
        ("[flow]\npool = \"4MB\"", "write a size with its unit"),
        ("[flow]\npool = \"1MiB\"", "write at least 2112KiB"),
        ("[limits]\nmessage_max = \"8MiB\"", "flow.pool = \"4MiB\": write at least 16448KiB"),
        ("[limits]\nmessage_max = \"1B\"", "write a size from 1KiB to 8MiB"),
        ("[shutdown]\ndrain_timeout = \"30\"", "write a duration with its unit"),
        ("[limits]\nmemory = \"1MiB\"", "write at least 64MiB"),
        ("[limits]\nmemory = \"95%\"", "write a share from 1% to 90%"),
        ("[cluster]\ngate_max = 99", "this build reads gates up to"),
        ("[limits]\nconnections = 0", "write a whole number from 1"),
        ("[limits]\nmessage_max = \"9MiB\"", "write a size from 1KiB to 8MiB"),
        ("[listen]\nnative = \"localhost\"", "write an address and a port"),
        ("[listen]\nnative = \"0.0.0.0:7420\"", "--insecure"),
        ("[log]\nformat = \"xml\"", "\"text\""),
        ("[node]\nname = \"a b\"", "' '"),
        ("[node]\nname = [1]", "node.name is a array"),
        ("[node", "weir.toml"),
        ("[cluster]\nseeds = [1]", "cluster.seeds is a list of texts"),
        ("[cluster]\nseeds = [\"weir-1\"]", "\"weir-1\" is no place to go to; write a host and"),
        ("[cluster]\nseeds = [\"weir-1:0\"]", "\"weir-1:0\" is no place to go to"),
        ("[cluster]\nseeds = [\"0.0.0.0:1\"]", "\"0.0.0.0:1\" is no place to go to"),
        ("[cluster]\nseeds = [\"::1:1\"]", "\"::1:1\" is no place to go to"),
        ("[cluster]\nseeds = [\"a:1\", \"b:1\", \"a:1\"]", "a:1 is named twice"),
        ("[cluster]\nexpect = 65", "write a whole number from 0 to 64"),
        ("[cluster]\nexpect = 2\nseeds = [\"127.0.0.1:1\"]", "cluster.seeds names 1"),
        ("[cluster]\nmetadata_voters = 4", "write 1, 3 or 5"),
        ("[cluster]\nrack = \"a b\"", "cluster.rack = \"a b\""),
        ("[listen]\npeers = \"here\"", "write an address and a port"),
        ("[cluster]\nseeds = [\"b:1\"]", "cluster.secret_file = \"\": a seed or an address"),
        (
            "[cluster]\nseeds = [\"127.0.0.1:1\"]\nsecret_file = \"/nowhere\"",
            "cluster.secret_file = \"/nowhere\": the secret cannot be read",
        ),
        (
            "[cluster]\nseeds = [\"127.0.0.1:1\"]\n[listen]\npeers = \"0.0.0.0:7\"",
            "listen.peers = \"0.0.0.0:7\": other machines cannot be told this address; write in \
             node.advertise_peers",
        ),
        (
            "[cluster]\nseeds = [\"127.0.0.1:1\"]\n[listen]\nnative = \"127.0.0.1:0\"",
            "write in node.advertise where they find this broker",
        ),
    ];
    for (file, part) in cases {
        let error = error_of(file);
        assert!(error.contains(part), "{file}: {error}");
    }
    let environment = load("", &[("WEIR__FLOW__POOOL", "4MiB")]).unwrap_err().to_string();
    assert!(environment.contains("did you mean flow.pool?"), "{environment}");
    let missing = Config::load(Some(Path::new("/nowhere.toml")), [], &Overrides::default());
    assert!(matches!(missing, Err(ConfigError::Read { .. })));
}

#[test]
fn a_public_address_needs_a_word_of_consent() {
    let public = "[listen]\nnative = \"0.0.0.0:7420\"\ninsecure = true";
    assert!(load(public, &[]).is_ok());
    assert!(load("[listen]\nnative = \"[::1]:7420\"", &[]).is_ok());
}

#[test]
fn sizes_and_durations_keep_their_units() {
    assert_eq!(parse_bytes("10GiB"), Ok(10 << 30));
    assert_eq!(parse_bytes("0B"), Ok(0));
    assert!(parse_bytes("99999999TiB").is_err());
    assert_eq!(parse_duration("7d"), Ok(Duration::from_secs(7 * 86_400)));
    assert!(parse_duration("-1s").is_err());
}

#[test]
fn a_broker_is_one_of_several_only_with_seeds() {
    let lonely = load("[cluster]\nrack = \"r1\"", &[]).unwrap();
    assert!(lonely.cluster().is_none());
    let file = "[cluster]\nseeds = [\"localhost:2\", \"127.0.0.1:1\"]\nexpect = 2";
    let config = load(file, &[]).unwrap();
    let cluster = config.cluster().unwrap();
    let seeds: Vec<_> = cluster.seeds.iter().map(|seed| seed.as_str()).collect();
    assert_eq!(seeds, ["127.0.0.1:1", "localhost:2"], "sorted, whatever the order in the file");
    assert_eq!(
        (cluster.peer.as_str(), cluster.client.as_str()),
        ("127.0.0.1:7422", "127.0.0.1:7420")
    );
    assert_eq!(cluster.rack.as_str(), "weir-0", "a broker fails by itself");
    assert!(cluster.secret.is_none());
    let told = [
        ("WEIR__CLUSTER__SEEDS", "127.0.0.1:3, 127.0.0.1:2"),
        ("WEIR__NODE__ADVERTISE_PEERS", "127.0.0.1:2"),
    ];
    let config = load("", &told).unwrap();
    let cluster = config.cluster().unwrap();
    assert_eq!((cluster.seeds[0].as_str(), cluster.peer.as_str()), ("127.0.0.1:2", "127.0.0.1:2"));
    let flags = Overrides {
        seeds: Some("127.0.0.1:4,127.0.0.1:5".into()),
        peers: Some(([127, 0, 0, 1], 5).into()),
        ..Overrides::default()
    };
    let config = Config::load(None, [], &flags).unwrap();
    assert_eq!(config.cluster().unwrap().peer, config.cluster().unwrap().seeds[1]);
}

#[test]
fn a_secret_is_long_enough_and_lets_brokers_leave_loopback() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    let file = format!(
        "[node]\nadvertise = \"b:2\"\nadvertise_peers = \"b:3\"\n[cluster]\nseeds = [\"b:3\"]\n\
         secret_file = {:?}\n[listen]\npeers = \"0.0.0.0:7422\"",
        path.to_str().unwrap()
    );
    for bytes in [31, 4097] {
        std::fs::write(&path, format!(" {}\n", "s".repeat(bytes))).unwrap();
        let expected = format!("the file holds {bytes} bytes of a secret, 32 to 4096 are needed");
        assert!(error_of(&file).contains(&expected), "{}", error_of(&file));
    }
    for (bytes, mode, exposed) in [(32, 0o600, false), (4096, 0o640, true), (64, 0o604, true)] {
        std::fs::write(&path, format!("{}\n", "s".repeat(bytes))).unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, permissions).unwrap();
        let config = load(&file, &[]).unwrap();
        let cluster = config.cluster().unwrap();
        assert_eq!((cluster.secret.is_some(), cluster.is_secret_exposed), (true, exposed));
    }
}
