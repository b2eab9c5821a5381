//! The configuration: a table of settings, read once at start.
//!
//! Owns: every key with its default, its form and its sentence; precedence
//! (flag > `WEIR__SECTION__KEY` > file > default); the errors a person reads.
//! Never: a key that nothing uses; a size or duration without a unit.
//! Invariant: a [`Config`] is whole: every setting was parsed and checked.

mod cluster;
mod reference;
mod settings;
mod values;

pub use cluster::ClusterSettings;
pub use reference::reference;
pub use values::{ValueError, parse_bytes, parse_duration};

use settings::{SETTINGS, Setting};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use values::{parse_bool, parse_count, parse_listen, parse_memory};

/// What the command line says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--data-dir`.
    pub data_dir: Option<PathBuf>,
    /// `--listen`.
    pub native: Option<SocketAddr>,
    /// `--admin`.
    pub admin: Option<SocketAddr>,
    /// `--insecure`.
    pub insecure: bool,
    /// `--peers`.
    pub peers: Option<SocketAddr>,
    /// `--seeds`: apart by commas.
    pub seeds: Option<String>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A setting as it is in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// `section.key`.
    pub key: &'static str,
    /// As it would be written in the file.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{}: {text}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// What and where.
        text: String,
    },
    /// A key that does not exist.
    #[error("{origin}: {key} is not a setting{}", suggestion.map_or(String::new(), |known| format!("; did you mean {known}?")))]
    UnknownKey {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: String,
        /// The nearest key that exists.
        suggestion: Option<&'static str>,
    },
    /// A value that its key cannot have.
    #[error("{origin}: {key} = {value:?}: {reason}")]
    Value {
        /// Where it stands.
        origin: Origin,
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// What is wrong and what to write instead.
        reason: ValueError,
    },
    /// A public address without protection.
    #[error(
        "{key} = {address}: this address is not a loopback address, and there is neither TLS nor \
         authentication; listen on 127.0.0.1, or accept the risk with --insecure"
    )]
    Public {
        /// The key.
        key: &'static str,
        /// The address.
        address: SocketAddr,
    },
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// JSON unless stderr is a terminal.
    Auto,
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// How segments are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageBackend {
    /// As the filesystem asks for.
    Auto,
    /// Through memory maps.
    Map,
    /// By pwrite.
    Pwrite,
}

/// The whole configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) name: String,
    pub(crate) data_dir: PathBuf,
    pub(crate) native: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) memory_bytes: u64,
    pub(crate) connections: usize,
    pub(crate) message_bytes_max: usize,
    pub(crate) pool_cost: u64,
    pub(crate) drain_timeout: Duration,
    pub(crate) metrics_topics_max: usize,
    pub(crate) storage_backend: StorageBackend,
    /// 0 = never.
    pub(crate) scrub_bytes_per_second: u64,
    pub(crate) scrub_interval: Duration,
    cluster: Option<ClusterSettings>,
    log_level: String,
    log_format: LogFormat,
    effective: Vec<EffectiveSetting>,
}

type Raw = BTreeMap<&'static str, (String, Origin)>;

impl Config {
    /// Reads the configuration from its four sources.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
        overrides: &Overrides,
    ) -> Result<Self, ConfigError> {
        let mut raw: Raw = SETTINGS
            .iter()
            .map(|setting| (setting.key, (setting.default.to_owned(), Origin::Default)))
            .collect();
        if let Some(file) = file {
            read_file(file, &mut raw)?;
        }
        read_environment(environment, &mut raw)?;
        read_overrides(overrides, &mut raw);
        Self::from_raw(&raw)
    }

    /// The defaults with another data directory and any free ports: for embedding and tests.
    pub fn embedded(data_dir: &Path) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let overrides = Overrides {
            data_dir: Some(data_dir.to_owned()),
            native: Some(any),
            admin: Some(any),
            ..Overrides::default()
        };
        Self::load(None, [], &overrides).expect("the defaults are a configuration")
    }

    fn from_raw(raw: &Raw) -> Result<Self, ConfigError> {
        let read = Reader { raw };
        let memory_total = crate::budget::default_bytes() * 4;
        let message_bytes_max = read.parsed("limits.message_max", settings::parse_message_max)?;
        let config = Self {
            name: read.parsed("node.name", |text| {
                let name = weir_protocol::types::Name::new(text);
                name.map(|name| name.to_string()).map_err(|e| ValueError::new(e.to_string()))
            })?,
            data_dir: PathBuf::from(read.text("node.data_dir")),
            native: read.parsed("listen.native", parse_listen)?,
            admin: read.parsed("listen.admin", parse_listen)?,
            memory_bytes: read.parsed("limits.memory", |text| parse_memory(text, memory_total))?,
            connections: read.parsed("limits.connections", |t| parse_count(t, 1, 1_000_000))?,
            message_bytes_max,
            pool_cost: read
                .parsed("flow.pool", |text| settings::parse_pool(text, message_bytes_max))?,
            drain_timeout: read.parsed("shutdown.drain_timeout", parse_duration)?,
            metrics_topics_max: read
                .parsed("metrics.topics_max", |t| parse_count(t, 1, 100_000))?,
            storage_backend: read.parsed("storage.backend", |text| match text {
                "auto" => Ok(StorageBackend::Auto),
                "map" => Ok(StorageBackend::Map),
                "pwrite" => Ok(StorageBackend::Pwrite),
                _ => Err(ValueError::new("write \"auto\", \"map\" or \"pwrite\"")),
            })?,
            scrub_bytes_per_second: read
                .parsed("storage.scrub_bytes_per_second", settings::parse_rate)?,
            scrub_interval: read.parsed("storage.scrub_interval", parse_duration)?,
            cluster: cluster::read(&read)?,
            log_level: read.text("log.level").to_owned(),
            log_format: read.parsed("log.format", |text| match text {
                "auto" => Ok(LogFormat::Auto),
                "json" => Ok(LogFormat::Json),
                "text" => Ok(LogFormat::Text),
                _ => Err(ValueError::new("write \"auto\", \"json\" or \"text\"")),
            })?,
            effective: effective(raw),
        };
        let insecure = read.parsed("listen.insecure", parse_bool)?;
        for (key, address) in [("listen.native", config.native), ("listen.admin", config.admin)] {
            if !insecure && !address.ip().is_loopback() {
                return Err(ConfigError::Public { key, address });
            }
        }
        Ok(config)
    }

    /// Where the data lies.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// What this broker was told about others; none of one that is alone.
    pub fn cluster(&self) -> Option<&ClusterSettings> {
        self.cluster.as_ref()
    }

    /// A filter of `tracing`: `info`, `debug`, `weir_broker=debug,info`.
    pub fn log_level(&self) -> &str {
        &self.log_level
    }

    /// How logs are written.
    pub fn log_format(&self) -> LogFormat {
        self.log_format
    }

    /// Every setting with its value and where it comes from.
    pub fn effective(&self) -> Vec<EffectiveSetting> {
        self.effective.clone()
    }

    /// The memory budget, for tests that need a small one.
    pub fn with_memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// The number of connections, for tests that need few.
    pub fn with_connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }
}

fn effective(raw: &Raw) -> Vec<EffectiveSetting> {
    let each = SETTINGS.iter().map(|setting| {
        let (value, origin) = raw[setting.key].clone();
        EffectiveSetting { key: setting.key, value, origin }
    });
    each.collect()
}

struct Reader<'a> {
    raw: &'a Raw,
}

impl Reader<'_> {
    fn text(&self, key: &'static str) -> &str {
        &self.raw[key].0
    }

    fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, ValueError>,
    ) -> Result<T, ConfigError> {
        let (value, origin) = &self.raw[key];
        parse(value).map_err(|reason| ConfigError::Value {
            origin: origin.clone(),
            key,
            value: value.clone(),
            reason,
        })
    }

    /// The error that the value of `key`, well formed as it is, cannot stand beside the others.
    fn wrong(&self, key: &'static str, reason: impl Into<String>) -> ConfigError {
        let (value, origin) = self.raw[key].clone();
        ConfigError::Value { origin, key, value, reason: ValueError::new(reason) }
    }
}

fn setting_of(key: &str, origin: &Origin) -> Result<&'static Setting, ConfigError> {
    SETTINGS.iter().find(|setting| setting.key == key).ok_or_else(|| ConfigError::UnknownKey {
        origin: origin.clone(),
        key: key.to_owned(),
        suggestion: settings::nearest(key),
    })
}

fn read_file(file: &Path, raw: &mut Raw) -> Result<(), ConfigError> {
    let text = std::fs::read_to_string(file)
        .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
    let syntax = |text: String| ConfigError::Syntax { file: file.to_owned(), text };
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| syntax(e.to_string()))?;
    let origin = Origin::File(file.to_owned());
    for (section, content) in table {
        let toml::Value::Table(keys) = content else {
            setting_of(&section, &origin)?;
            continue;
        };
        for (key, value) in keys {
            let setting = setting_of(&format!("{section}.{key}"), &origin)?;
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(flag) => flag.to_string(),
                toml::Value::Array(parts) if setting.is_list => {
                    let texts: Option<Vec<_>> = parts.iter().map(toml::Value::as_str).collect();
                    let not_text = || syntax(format!("{} is a list of texts", setting.key));
                    texts.ok_or_else(not_text)?.join(",")
                }
                other => {
                    let kind = other.type_str();
                    return Err(syntax(format!("{} is a {kind}, not a value", setting.key)));
                }
            };
            raw.insert(setting.key, (value, origin.clone()));
        }
    }
    Ok(())
}

fn read_environment(
    environment: impl IntoIterator<Item = (String, String)>,
    raw: &mut Raw,
) -> Result<(), ConfigError> {
    for (name, value) in environment {
        let Some(path) = name.strip_prefix("WEIR__") else { continue };
        let key = path.to_lowercase().replace("__", ".");
        let origin = Origin::Environment(name);
        let setting = setting_of(&key, &origin)?;
        raw.insert(setting.key, (value, origin));
    }
    Ok(())
}

fn read_overrides(overrides: &Overrides, raw: &mut Raw) {
    let mut set = |key, flag, value: Option<String>| {
        if let Some(value) = value {
            raw.insert(key, (value, Origin::Flag(flag)));
        }
    };
    let data_dir = overrides.data_dir.as_ref().map(|path| path.display().to_string());
    set("node.data_dir", "--data-dir", data_dir);
    set("listen.native", "--listen", overrides.native.map(|address| address.to_string()));
    set("listen.admin", "--admin", overrides.admin.map(|address| address.to_string()));
    set("listen.peers", "--peers", overrides.peers.map(|address| address.to_string()));
    set("cluster.seeds", "--seeds", overrides.seeds.clone());
    set("listen.insecure", "--insecure", overrides.insecure.then(|| "true".to_owned()));
}

#[cfg(test)]
mod tests;
