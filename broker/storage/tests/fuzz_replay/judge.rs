//! Runs the promises over one input and catches what breaks.
//!
//! Owns: the breaks that are known, each kept with an input in the corpus until its cause is gone;
//! the largest allocation that an input may cause.
//! Never: lets an unknown break pass.

use crate::bends::{self, Bend};
use crate::logs::{Folder, Original};
use crate::memory;
use crate::promises::{self, Bent};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

/// What is known to break, without its numbers. Each is proved by files of the corpus; who removes
/// a cause removes it here, and says in those files what they turn out to be now.
pub(crate) const KNOWN: [&str; 1] = [
    // A chain that is forged to the end of a segment is not the one that its successor names. A
    // start that believes the index does not see it; one that reads the segment cannot tell which
    // of the two is wrong, and refuses both.
    "a valid batch that does not follow the one before it",
];

/// A reader of files takes this much at once, and never more than the files hold besides.
const ALLOCATED_BYTES_MAX: usize = 4 << 20;

thread_local! {
    /// A panic is caught and judged: nobody needs to read of it.
    static JUDGING: Cell<bool> = const { Cell::new(false) };
    static LAST_PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What an input led to: an outcome, or the promise that it broke.
pub(crate) type Judgement = Result<String, String>;

/// The bends of an input over its log.
pub(crate) fn judge(originals: &[Original], input: &[u8]) -> (Judgement, Vec<Bend>) {
    let (log, bends) = bends::of(input);
    let original = &originals[log % originals.len()];
    let (files, bent) = bends::apply(original, &bends);
    (judge_files(original, &files, bent), bends)
}

/// A folder as it is.
pub(crate) fn judge_files(original: &Original, files: &Folder, bent: Bent) -> Judgement {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !JUDGING.get() {
                return usual(panic);
            }
            let text = panic.payload_as_str().unwrap_or("a panic without a text");
            let file = panic.location().map_or("", |location| location.file());
            let file = file.rsplit_once("broker/").map_or(file, |(_, within)| within);
            let text = format!("{text} ({file})");
            LAST_PANIC.with_borrow_mut(|last| *last = text);
        }));
    });
    JUDGING.set(true);
    memory::forget_largest();
    let outcome = catch_unwind(AssertUnwindSafe(|| promises::check(original, files, bent)));
    JUDGING.set(false);
    let explained = ALLOCATED_BYTES_MAX + files.values().map(Vec::len).sum::<usize>();
    match memory::largest() {
        largest if largest > explained => Err(format!("{largest} bytes are allocated at once")),
        _ => outcome.map_err(|_| LAST_PANIC.take()),
    }
}

/// Which of the known breaks a break is.
pub(crate) fn known(broken: &str) -> Option<&'static str> {
    let text: String = broken.split(|c: char| c.is_ascii_digit()).collect();
    KNOWN.into_iter().find(|known| text.contains(known))
}
