//! What producers published, what was acknowledged of it, and whether a topic holds just that.
//!
//! Owns: the content of every message, which follows from its producer and its number.
//! Never: takes the broker's word: what is stored is read back, and counted here.

use fastrand::Rng;
use std::fmt;

/// One durable producer, which keeps to one partition, and what became of its messages.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) topic: &'static str,
    pub(crate) partition: u32,
    /// Its number among the producers, and the seed of its messages.
    pub(crate) producer: u64,
    /// Messages from here on were never sent.
    sent: u64,
    /// Number and offset of every message that was acknowledged.
    acknowledged: Vec<(u64, u64)>,
    /// By number: the offsets of what was found at the last check.
    found: Vec<u64>,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, partition, producer, .. } = self;
        write!(f, "topic {topic}, partition {partition}, producer {producer}")
    }
}

impl Account {
    pub(crate) fn new(topic: &'static str, partition: u32, producer: u64) -> Self {
        let (acknowledged, found) = (Vec::new(), Vec::new());
        Self { topic, partition, producer, sent: 0, acknowledged, found }
    }

    /// Messages that the last check has found: the producer goes on behind them.
    pub(crate) fn stored(&self) -> u64 {
        self.found.len() as u64
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }

    /// The message of this number, which may be stored from now on.
    pub(crate) fn send(&mut self, number: u64) -> Vec<u8> {
        self.sent = self.sent.max(number + 1);
        payload(self.producer, number)
    }

    pub(crate) fn acknowledge(&mut self, number: u64, offset: u64) {
        self.acknowledged.push((number, offset));
    }

    /// Every acknowledged message was found, where the acknowledgement said.
    fn settle(&self) -> Result<(), String> {
        for (number, offset) in &self.acknowledged {
            match self.found.get(*number as usize) {
                Some(found) if found == offset => {}
                Some(found) => {
                    return Err(format!(
                        "{self}: message {number} was acknowledged at offset {offset} and is at \
                         {found}"
                    ));
                }
                None => {
                    return Err(format!(
                        "{self}: message {number} was acknowledged at offset {offset} and is \
                         lost: {} are there",
                        self.found.len()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Everything that the partitions hold, read from their beginning.
pub(crate) struct Audit<'a> {
    accounts: &'a mut [Account],
}

impl<'a> Audit<'a> {
    pub(crate) fn new(accounts: &'a mut [Account]) -> Self {
        for account in &mut *accounts {
            account.found.clear();
        }
        Self { accounts }
    }

    /// The next message of a partition: the next of its producer, and as it was sent.
    pub(crate) fn found(
        &mut self,
        (topic, partition): (&str, u32),
        offset: u64,
        content: &[u8],
    ) -> Result<(), String> {
        let place = format_args!("topic {topic}, partition {partition}, offset {offset}");
        let never = || format!("{place}: what is there was never published there");
        let (producer, number) = origin(content).ok_or_else(never)?;
        let account = self.accounts.get_mut(producer as usize).ok_or_else(never)?;
        if (account.topic, account.partition) != (topic, partition) || number >= account.sent {
            return Err(never());
        }
        let next = account.stored();
        if number < next {
            return Err(format!("{place}: message {number} of producer {producer} a second time"));
        }
        if number > next {
            return Err(format!(
                "{place}: message {number} of producer {producer}, and {next} is missing"
            ));
        }
        if content != payload(producer, number) {
            return Err(format!("{place}: message {number} of producer {producer} is damaged"));
        }
        account.found.push(offset);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<(), String> {
        self.accounts.iter().try_for_each(Account::settle)
    }
}

/// Mostly small ones; some span pages, and some are large enough that a broker stores them in
/// another way.
fn payload(producer: u64, number: u64) -> Vec<u8> {
    let mut random = Rng::with_seed(producer << 40 | number);
    let len = match random.u32(..100) {
        0..85 => random.usize(..300),
        85..99 => random.usize(300..4_000),
        _ => random.usize(16_000..40_000),
    };
    let mut content = format!("{producer} {number} ").into_bytes();
    let head = content.len();
    content.resize(head + len, 0);
    random.fill(&mut content[head..]);
    content
}

fn origin(content: &[u8]) -> Option<(u64, u64)> {
    let mut words = content.splitn(3, |byte| *byte == b' ');
    let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
    Some((number()?, number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: (&str, u32) = ("t", 1);

    /// Two producers; the first sent 4 messages, of which 0 and 2 are acknowledged.
    fn accounts() -> Vec<Account> {
        let mut accounts = vec![Account::new("t", 1, 0), Account::new("t", 1, 1)];
        for number in 0..4 {
            accounts[0].send(number);
        }
        accounts[1].send(0);
        accounts[0].acknowledge(0, 0);
        accounts[0].acknowledge(2, 3);
        accounts
    }

    fn audit(contents: &[Vec<u8>]) -> Result<(), String> {
        let mut accounts = accounts();
        let mut audit = Audit::new(&mut accounts);
        for (offset, content) in contents.iter().enumerate() {
            audit.found(PLACE, offset as u64, content)?;
        }
        audit.finish()
    }

    #[test]
    fn what_was_acknowledged_is_enough_and_what_was_sent_may_be_there() {
        let stored = [payload(0, 0), payload(1, 0), payload(0, 1), payload(0, 2)];
        assert_eq!(audit(&stored), Ok(()));
        assert_eq!(audit(&[&stored[..], &[payload(0, 3)]].concat()), Ok(()));
    }

    #[test]
    fn every_way_to_be_wrong_is_noticed() {
        let (a, b, c) = (payload(0, 0), payload(0, 1), payload(0, 2));
        let other = payload(1, 0);
        let mut damaged = payload(0, 1);
        *damaged.last_mut().unwrap() ^= 1;
        for (stored, why) in [
            (vec![a.clone(), other.clone(), b.clone()], "is lost"),
            (vec![a.clone(), b.clone(), c.clone()], "and is at 2"),
            (vec![a.clone(), a.clone()], "a second time"),
            (vec![a.clone(), c.clone()], "1 is missing"),
            (vec![a.clone(), damaged], "is damaged"),
            (vec![payload(0, 4)], "never published"),
            (vec![payload(1, 1)], "never published"),
            (vec![payload(2, 0)], "never published"),
            (vec![b"noise".to_vec()], "never published"),
        ] {
            let found = audit(&stored).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
        let mut accounts = accounts();
        let found = Audit::new(&mut accounts).found(("t", 0), 0, &a).unwrap_err();
        assert!(found.contains("never published"), "{found}");
    }
}
