//! The generated reference pages: settings and metrics.
//!
//! Owns: where they lie. Never: edits anything else.

use std::fs;
use std::path::Path;

/// Writes the pages, or with `check` compares them.
pub(crate) fn run(root: &Path, check: bool) -> Result<String, String> {
    let pages = [
        ("configuration.md", weir_broker::config::reference()),
        ("metrics.md", weir_broker::metrics::reference()),
    ];
    let folder = root.join("ops/book/src");
    for (name, page) in pages {
        let path = folder.join(name);
        if check {
            let found = fs::read_to_string(&path).unwrap_or_default();
            if found != page {
                let path = path.display();
                return Err(format!("{path} is not what the code says: cargo xtask reference"));
            }
        } else {
            fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
            fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))?;
        }
    }
    Ok("the references say what the code says".to_owned())
}
