//! The text form: families that the recorder does not render.
//!
//! Never: renders a family twice or one that the table does not know.

use super::families::{Side, family_of};
use super::histogram::{BOUNDS_US, Histogram};
use std::fmt::Write;

/// A page of metrics being written.
#[derive(Debug)]
pub struct Exposition {
    page: String,
    /// The family whose samples are being written.
    current: &'static str,
}

impl Exposition {
    pub(super) fn new(page: String) -> Self {
        Self { page, current: "" }
    }

    /// Writes one sample. Samples of one family are written together.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.begin(name);
        self.line(name, "", labels, value);
    }

    fn begin(&mut self, name: &str) {
        let family = family_of(name).expect("every family stands in the table");
        assert!(family.side == Side::Registry, "{name} is the recorder's");
        if self.current != family.name {
            self.current = family.name;
            let kind = family.kind.name();
            let _ = writeln!(self.page, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
        }
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &[(&str, &str)], value: f64) {
        let _ = write!(self.page, "{name}{suffix}");
        if !labels.is_empty() {
            self.page.push('{');
            for (number, (label, content)) in labels.iter().enumerate() {
                let comma = if number > 0 { "," } else { "" };
                let _ = write!(self.page, "{comma}{label}=\"{}\"", escaped(content));
            }
            self.page.push('}');
        }
        let _ = writeln!(self.page, " {value}");
    }

    pub(super) fn histogram(&mut self, name: &str, histogram: &Histogram) {
        self.begin(name);
        let (counts, sum_us) = histogram.read();
        let mut total = 0;
        for (at, count) in counts.iter().enumerate() {
            total += count;
            let bound = BOUNDS_US.get(at).map(|us| (*us as f64 / 1e6).to_string());
            let bound = bound.unwrap_or_else(|| "+Inf".to_owned());
            self.line(name, "_bucket", &[("le", &bound)], total as f64);
        }
        self.line(name, "_sum", &[], sum_us as f64 / 1e6);
        self.line(name, "_count", &[], total as f64);
    }

    pub(super) fn finish(self) -> String {
        self.page
    }
}

fn escaped(content: &str) -> String {
    content.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
