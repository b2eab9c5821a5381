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
        ("[limits]\nconnections = 0", "write a whole number from 1"),
        ("[limits]\nmessage_max = \"9MiB\"", "write a size from 1KiB to 8MiB"),
        ("[listen]\nnative = \"localhost\"", "write an address and a port"),
        ("[listen]\nnative = \"0.0.0.0:7420\"", "--insecure"),
        ("[log]\nformat = \"xml\"", "\"text\""),
        ("[node]\nname = \"a b\"", "' '"),
        ("[node]\nname = [1]", "node.name is a array"),
        ("[node", "weir.toml"),
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
