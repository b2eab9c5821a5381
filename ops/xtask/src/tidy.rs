//! Checks the rules of CONTRIBUTING.md that neither the compiler nor clippy knows.
//!
//! Owns: the length of files, the banned identifiers, the module heads, the import rules; the links
//! of the documents are in [`crate::links`].
//! Never: changes a file.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file, its tests not counted.
const FILE_LINES_MAX: usize = 600;
/// Words that say nothing, as parts of an identifier that the file itself defines.
const BANNED_PARTS: [&str; 4] = ["manager", "helper", "util", "utils"];
/// Folders of Rust sources.
const SOURCE_FOLDERS: [&str; 9] = [
    "protocol/src",
    "client/src",
    "broker/src",
    "broker/storage/src",
    "broker/sim/src",
    "benches/src",
    "benches/micro",
    "ops/weir/src",
    "ops/xtask/src",
];
/// Who may import whom: (folder, crates that must not appear in it).
const IMPORTS_BANNED: [(&str, &[&str]); 4] = [
    (
        "protocol/src",
        &["tokio", "weir_storage", "weir_broker", "weir_client", "std::fs", "std::net"],
    ),
    ("client/src", &["weir_storage", "weir_broker", "weir_sim"]),
    ("broker/storage/src", &["tokio", "openraft", "weir_broker", "weir_client"]),
    ("broker/src", &["weir_sim", "weir_client", "weir_bench", "std::fs"]),
];

/// Returns a summary, or every broken rule with its place.
pub(crate) fn check(root: &Path) -> Result<String, String> {
    let mut problems = String::new();
    let mut files = Vec::new();
    for folder in SOURCE_FOLDERS {
        collect(&root.join(folder), &mut files)?;
    }
    for file in &files {
        let text = fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        check_file(&name, &text, &mut problems);
    }
    let documents = crate::links::check(root, &mut problems)?;
    match problems.is_empty() {
        true => Ok(format!("{} files and {documents} documents are tidy", files.len())),
        false => Err(problems),
    }
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let listing = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for item in listing {
        let path = item.map_err(|e| e.to_string())?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(name: &str, text: &str, problems: &mut String) {
    let body = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text);
    let is_test = name.ends_with("/tests.rs") || name.contains("/tests/");
    let lines = body.lines().count();
    if lines > FILE_LINES_MAX && !is_test {
        let _ = writeln!(problems, "{name}: {lines} lines, the end is {FILE_LINES_MAX}: split it");
    }
    if !text.starts_with("//!") && !is_test {
        let _ = writeln!(problems, "{name}:1: a module opens with //! what it owns and never does");
    }
    // The functions of another crate's trait carry the names that it gave them.
    let mut names_are_ours = true;
    for (number, line) in text.lines().enumerate() {
        if line.starts_with("impl") {
            names_are_ours = !line.contains(" for ");
        } else if line.starts_with('}') {
            names_are_ours = true;
        }
        if !names_are_ours {
            continue;
        }
        if let Some(identifier) = defined_identifier(line).filter(|word| is_banned(word)) {
            let _ = writeln!(problems, "{name}:{}: {identifier} says nothing", number + 1);
        }
    }
    for (folder, banned) in IMPORTS_BANNED {
        if is_test || !name.starts_with(folder) || name.starts_with("broker/src/replication") {
            continue;
        }
        for import in body.lines().filter(|line| line.trim_start().starts_with("use ")) {
            for word in banned.iter().filter(|word| import.contains(&format!("use {word}"))) {
                let _ = writeln!(problems, "{name}: {folder} does not import {word}");
            }
        }
    }
    if name.starts_with("broker/src/")
        && !name.starts_with("broker/src/replication")
        && body.lines().any(|line| line.contains("openraft::") && !line.trim().starts_with("//"))
    {
        let _ = writeln!(problems, "{name}: only replication names openraft");
    }
}

/// The name that a line defines: a function, type, module, constant or trait.
fn defined_identifier(line: &str) -> Option<&str> {
    let mut words =
        line.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty());
    while let Some(word) = words.next() {
        match word {
            "pub" | "crate" | "super" | "async" | "const" | "unsafe" | "in" | "self" => {
                if word == "const" && line.contains(':') && !line.contains("fn ") {
                    return words.next();
                }
            }
            "fn" | "struct" | "enum" | "trait" | "mod" | "type" | "static" => return words.next(),
            _ => return None,
        }
    }
    None
}

fn is_banned(identifier: &str) -> bool {
    if identifier.starts_with("get_") {
        return true;
    }
    let mut parts = Vec::new();
    let mut part = String::new();
    for c in identifier.chars() {
        if c == '_' || c.is_uppercase() {
            parts.push(std::mem::take(&mut part));
        }
        if c != '_' {
            part.extend(c.to_lowercase());
        }
    }
    parts.push(part);
    parts.iter().any(|part| BANNED_PARTS.contains(&part.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(name: &str, text: &str) -> String {
        let mut problems = String::new();
        check_file(name, text, &mut problems);
        problems
    }

    #[test]
    fn every_rule_finds_what_breaks_it() {
        let head = "//! Owns nothing.\n";
        assert_eq!(problems_of("broker/src/a.rs", head), "");
        assert!(problems_of("broker/src/a.rs", "fn a() {}\n").contains("opens with"));
        let long = head.to_owned() + &"// x\n".repeat(FILE_LINES_MAX);
        assert!(problems_of("broker/src/a.rs", &long).contains("split it"));
        for banned in ["fn get_it() {}", "pub struct LogManager;", "mod util;"] {
            let found = problems_of("broker/src/a.rs", &format!("{head}{banned}\n"));
            assert!(found.contains("says nothing"), "{banned}");
        }
        let foreign = format!("{head}impl A for B {{\n    fn get_it() {{}}\n}}\n");
        assert_eq!(problems_of("broker/src/a.rs", &foreign), "");
        let import = format!("{head}use tokio::net::TcpStream;\n");
        assert!(problems_of("protocol/src/a.rs", &import).contains("does not import tokio"));
        let engine = format!("{head}fn a() {{ openraft::run() }}\n");
        assert!(problems_of("broker/src/partition.rs", &engine).contains("only replication"));
        assert_eq!(problems_of("broker/src/replication/log_store.rs", &engine), "");
    }
}
