//! Checks that what the documents point at is there.
//!
//! Owns: the links of every Markdown file of the repository to files beside it, and to tests.
//! Never: follows a link to another site; changes a file.
//! Invariant: a link whose text is a name in backticks, and which leads to a Rust file, names a
//! function of that file: so a promise that cites its test cannot outlive it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

/// Folders with documents, below the root.
const DOCUMENT_FOLDERS: [&str; 9] = [
    ".",
    "protocol",
    "client",
    "broker/src/replication",
    "broker/storage",
    "broker/sim",
    "benches",
    "ops/book/src",
    "ops/dashboards",
];

/// Adds every dead link below `root` to `problems`; returns how many documents were read.
pub(crate) fn check(root: &Path, problems: &mut String) -> Result<usize, String> {
    let mut count = 0;
    for folder in DOCUMENT_FOLDERS {
        let folder = root.join(folder);
        for item in fs::read_dir(&folder).map_err(|e| format!("{}: {e}", folder.display()))? {
            let path = item.map_err(|e| e.to_string())?.path();
            if path.extension().is_some_and(|extension| extension == "md") {
                let text = fs::read_to_string(&path).map_err(|e| e.to_string())?;
                let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                for (link, target) in links_of(&text) {
                    if let Some(problem) = problem_of(&folder, link, target) {
                        let _ = writeln!(problems, "{name}: {problem}");
                    }
                }
                count += 1;
            }
        }
    }
    Ok(count)
}

/// Text and target of every link: `[text](target)`.
fn links_of(text: &str) -> Vec<(&str, &str)> {
    let mut links = Vec::new();
    for (middle, _) in text.match_indices("](") {
        let start = text[..middle].rfind('[').map_or(middle, |at| at + 1);
        if let Some(end) = text[middle + 2..].find(')') {
            links.push((&text[start..middle], &text[middle + 2..middle + 2 + end]));
        }
    }
    links
}

fn problem_of(folder: &Path, link: &str, target: &str) -> Option<String> {
    let target = target.split('#').next().unwrap_or_default();
    if target.is_empty() || target.contains("://") {
        return None;
    }
    let path = folder.join(target);
    if !path.exists() {
        return Some(format!("{target} does not exist"));
    }
    let function = link.strip_prefix('`')?.strip_suffix('`')?;
    let is_name =
        function.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !is_name || !target.ends_with(".rs") {
        return None;
    }
    let text = fs::read_to_string(&path).unwrap_or_default();
    let defined = text.contains(&format!("fn {function}("));
    (!defined).then(|| format!("{target} has no function {function}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_links_and_tests_that_are_gone_are_found() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let text = "[a](https://example.org/x.rs), [`check`](links.rs), [b](#there),\n[`gone`](links.rs) [c](gone.md#x)";
        let links = links_of(text);
        assert_eq!(links.len(), 5);
        let problems: Vec<String> =
            links.iter().filter_map(|(link, target)| problem_of(&folder, link, target)).collect();
        assert_eq!(problems, ["links.rs has no function gone", "gone.md does not exist"]);
    }
}
