//! ERRORS.md says what the table says: same numbers, names, reasons and sentences, in order.

use weir_protocol::error_code::ErrorCode;

#[test]
fn every_code_has_its_section_and_no_section_is_left_over() {
    let page = include_str!("../ERRORS.md");
    let sections: Vec<&str> = page.split("\n### ").skip(1).collect();
    assert_eq!(sections.len(), ErrorCode::ALL.len(), "one section for each code");
    for (code, section) in ErrorCode::ALL.iter().zip(sections) {
        let title = format!("{:04x} {}", code.number(), code.name());
        assert_eq!(section.lines().next(), Some(title.as_str()));
        let mut sentence = code.sentence().to_owned();
        sentence[..1].make_ascii_uppercase();
        assert!(section.contains(&format!("\n{sentence}.\n")), "{title}: the sentence differs");
        assert!(section.contains(&format!("`{}`", code.reason())), "{title}: the reason differs");
        for part in ["**When:**", "**Outcome:**", "**The client:**", "**At 3 a.m.:**"] {
            assert!(section.contains(part), "{title} lacks {part}");
        }
    }
}
