//! Checks every package of `Cargo.lock` against a snapshot of the RustSec advisories.
//!
//! Owns: reading the snapshot's front matter and comparing versions.
//! Never: reaches for a network: the snapshot is given by its folder.
//! Invariant: a snapshot that cannot be read is a failure, never "no advisories".

use semver::{Version, VersionReq};
use serde::Deserialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Advisories that were looked at and do not apply, each with the reason.
const IGNORED: &[(&str, &str)] = &[];

#[derive(Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: Version,
    /// None for the workspace's own packages.
    source: Option<String>,
}

#[derive(Deserialize)]
struct FrontMatter {
    advisory: Advisory,
    #[serde(default)]
    versions: Versions,
}

#[derive(Deserialize)]
struct Advisory {
    id: String,
    #[serde(default)]
    withdrawn: Option<toml::Value>,
    /// `unmaintained`, `unsound`, `notice`; none for a vulnerability.
    #[serde(default)]
    informational: Option<String>,
}

#[derive(Deserialize, Default)]
struct Versions {
    #[serde(default)]
    patched: Vec<String>,
    #[serde(default)]
    unaffected: Vec<String>,
}

/// Returns a summary, or every advisory that applies.
pub(crate) fn check(lock: &Path, db: &Path) -> Result<String, String> {
    let text = fs::read_to_string(lock).map_err(|e| format!("{}: {e}", lock.display()))?;
    let lock: Lock = toml::from_str(&text).map_err(|e| format!("Cargo.lock: {e}"))?;
    let crates = db.join("crates");
    if !crates.is_dir() {
        return Err(format!("{} is not a folder of advisories", crates.display()));
    }
    let (mut compared, mut problems) = (0, String::new());
    let foreign = lock.package.iter().filter(|package| package.source.is_some());
    for package in foreign.clone() {
        for advisory in read_advisories(&crates.join(&package.name))? {
            compared += 1;
            if advisory.applies_to(&package.version)? {
                let id = &advisory.advisory.id;
                let kind = advisory.advisory.informational.as_deref().unwrap_or("vulnerability");
                let _ = writeln!(problems, "{id} ({kind}): {} {}", package.name, package.version);
            }
        }
    }
    let packages = foreign.count();
    if problems.is_empty() {
        Ok(format!("{packages} packages, {compared} advisories compared, none applies"))
    } else {
        Err(problems)
    }
}

fn read_advisories(folder: &Path) -> Result<Vec<FrontMatter>, String> {
    let Ok(files) = fs::read_dir(folder) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for file in files {
        let path = file.map_err(|e| e.to_string())?.path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let front = text
            .strip_prefix("```toml\n")
            .and_then(|rest| rest.split_once("\n```"))
            .ok_or_else(|| format!("{}: no front matter", path.display()))?;
        found.push(toml::from_str(front.0).map_err(|e| format!("{}: {e}", path.display()))?);
    }
    Ok(found)
}

impl FrontMatter {
    fn applies_to(&self, version: &Version) -> Result<bool, String> {
        let ignored = IGNORED.iter().any(|(id, _)| *id == self.advisory.id);
        if ignored || self.advisory.withdrawn.is_some() {
            return Ok(false);
        }
        for requirement in self.versions.patched.iter().chain(&self.versions.unaffected) {
            let requirement = VersionReq::parse(requirement)
                .map_err(|e| format!("{}: {requirement:?}: {e}", self.advisory.id))?;
            if requirement.matches(version) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_against(patched: &str) -> Result<String, String> {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("Cargo.lock");
        let locked = "[[package]]\nname = \"leaky\"\nversion = \"1.2.0\"\nsource = \"registry\"\n";
        fs::write(&lock, locked).unwrap();
        let advisories = folder.path().join("db/crates/leaky");
        fs::create_dir_all(&advisories).unwrap();
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-1\"\npackage = \"leaky\"\n\n[versions]\n\
             patched = [{patched:?}]\n```\n# It leaks\n"
        );
        fs::write(advisories.join("RUSTSEC-1.md"), text).unwrap();
        check(&lock, &folder.path().join("db"))
    }

    #[test]
    fn a_vulnerable_version_is_named_and_a_patched_one_passes() {
        assert_eq!(
            check_against(">= 1.3.0"),
            Err("RUSTSEC-1 (vulnerability): leaky 1.2.0\n".to_owned())
        );
        assert!(check_against(">= 1.2.0").is_ok());
    }

    #[test]
    fn a_missing_snapshot_is_a_failure() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("Cargo.lock");
        fs::write(&lock, "package = []\n").unwrap();
        assert!(check(&lock, &folder.path().join("nowhere")).is_err());
    }
}
