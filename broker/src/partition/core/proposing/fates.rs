//! What becomes of what was proposed: applied, lost, or taken up again by another run.
//!
//! Owns: that whoever waits is answered once, whoever leads.
//! Never: proposes.

use super::*;

/// The way out.
impl<R> Core<R> {
    pub(in super::super) fn applied(
        &mut self,
        header: &BatchHeader,
        commands: &[Command],
        out: &mut Effects<R>,
    ) {
        let place = Place { term: header.term, run: header.run, number: header.run_number };
        let proposed =
            matches!(header.batch_type, BatchType::Data | BatchType::Void | BatchType::Control);
        let log_start = self.state.log_start;
        let expired = self.state.apply(header, commands);
        self.proposing.clock.seen(header.log_time_ms);
        if proposed {
            while let Some(owed) = self.proposing.pending.pop_before(place) {
                self.lost(owed, StoredOutcome::NotStored, out);
            }
            if let Some(owed) = self.proposing.pending.pop_at(place) {
                self.landed(owed, header, out);
            }
            while self.proposing.flight.front().is_some_and(|last| *last <= place) {
                self.proposing.flight.pop_front();
            }
        }
        self.obeyed(commands, out);
        if expired > 0 {
            out.push(Effect::Expired(expired));
        }
        if self.state.log_start > log_start {
            out.push(Effect::Trimmed);
        }
    }

    fn landed(&mut self, owed: Owed<R>, header: &BatchHeader, out: &mut Effects<R>) {
        match owed {
            Owed::Publish { reply, base_sequence, record_count }
                if header.batch_type == BatchType::Data =>
            {
                let base_offset = header.base_offset;
                let range =
                    StoredRange { base_sequence, base_offset, record_count, duplicate: false };
                out.push(Effect::Stored { reply, range });
            }
            Owed::Publish { .. } => self.lost(owed, StoredOutcome::NotStored, out),
            Owed::Commands { settles, trim, roster } => {
                if settles {
                    self.consuming.settles.landed();
                }
                if roster {
                    self.sharing.commands_ended();
                }
                self.proposing.trim.in_flight &= !trim;
            }
        }
    }

    fn lost(&mut self, owed: Owed<R>, outcome: StoredOutcome, out: &mut Effects<R>) {
        match owed {
            Owed::Publish { reply, .. } if self.sends_back(outcome) => {
                self.proposing.sent_back.push_back(reply);
            }
            Owed::Publish { reply, .. } => {
                out.push(Effect::Refused { reply, refusal: self.why_lost(outcome) });
            }
            Owed::Commands { settles, trim, roster } => {
                if settles {
                    self.consuming.settles.lost();
                }
                if roster {
                    self.sharing.commands_ended();
                }
                self.proposing.trim.in_flight &= !trim;
                self.consuming.changes_lost();
                self.proposing.rest = Rest::Due;
            }
        }
    }

    /// Whether who was refused is told only when another leader is known: sooner it could not be told
    /// where to go.
    fn sends_back(&self, outcome: StoredOutcome) -> bool {
        let knows = self.lost.is_some() || self.proposing.fence.is_some();
        outcome == StoredOutcome::NotStored && self.leader.is_awaited() && !knows
    }

    fn why_lost(&self, outcome: StoredOutcome) -> PublishRefusal {
        match (&self.lost, &self.proposing.fence, self.leader) {
            // It may be what was lost.
            (Some(lost), ..) => {
                PublishRefusal::ReadOnly { lost: lost.clone(), outcome: StoredOutcome::Unknown }
            }
            (None, _, Leader::Elsewhere(hint)) if outcome == StoredOutcome::NotStored => {
                PublishRefusal::NotLeader(hint)
            }
            (None, Some(fence), _) => PublishRefusal::of_fence(fence, outcome),
            (None, None, _) => PublishRefusal::LeaderLost(outcome),
        }
    }

    /// The replica has moved, and everything committed is applied.
    pub(in super::super) fn replica(&mut self, seen: &Seen, now: Instant, out: &mut Effects<R>) {
        let before = self.leader;
        self.leader = before.seen(seen, now);
        self.sole_voter = seen.sole_voter;
        self.proving.rested();
        self.proposing.fence = match &seen.role {
            Role::Fenced(fence) => Some(fence.clone()),
            _ => None,
        };
        let (term, run) = (self.proposing.term, self.proposing.run);
        let broken = seen.refused.filter(|refused| (refused.term, refused.run) == (term, run));
        let leads = matches!(seen.role, Role::Leader(led) if led == term) && !seen.hands_over;
        match self.proposing.phase {
            Phase::Leading if broken.is_some() || !leads => {
                let outcome = broken.map_or(StoredOutcome::Unknown, |broken| broken.outcome);
                self.proposing.phase = Phase::Breaking(outcome);
            }
            Phase::Breaking(ref mut outcome) => {
                *outcome = broken.map_or(*outcome, |broken| broken.outcome);
            }
            _ => {}
        }
        if let Phase::Breaking(outcome) = self.proposing.phase {
            if seen.in_flight == 0 || self.proposing.fence.is_some() {
                self.drain_run(outcome, out);
            } else if self.leader.is_elsewhere() {
                // The new leader may have it or not, and can be asked: nobody waits for it here.
                self.drain_run(StoredOutcome::Unknown, out);
            }
        }
        if self.proposing.phase == Phase::Silent
            && let Some(term) = seen.leading
        {
            // It leads again: they are sent again, here, before anything is judged behind them.
            self.answer_sent_back(&PublishRefusal::LeaderLost(StoredOutcome::NotStored), out);
            self.proposing.begin(term);
            self.sharing.look_again();
        }
        self.follow_up(StoredOutcome::NotStored, out);
        self.answer_opens(out);
        self.depart(before, out);
        self.feed_hungry(out);
    }

    /// A leader that does not come is not waited for any longer.
    pub(in super::super) fn lose_patience(&mut self, now: Instant, out: &mut Effects<R>) {
        let before = self.leader;
        self.leader = before.after(now);
        if self.leader != before && matches!(self.proposing.phase, Phase::Breaking(_)) {
            self.drain_run(StoredOutcome::Unknown, out);
        }
        self.depart(before, out);
    }

    /// What was in flight is answered: whoever needs a leader is sent away, once.
    fn depart(&mut self, before: Leader, out: &mut Effects<R>) {
        if let Leader::Elsewhere(hint) = self.leader
            && !before.is_elsewhere()
        {
            self.step_down(hint, out);
        }
    }

    /// Everything committed is applied, and what still waits is lost or not known to be stored.
    pub(in super::super) fn drain_run(&mut self, outcome: StoredOutcome, out: &mut Effects<R>) {
        let owed: Vec<_> = self.proposing.pending.drain().collect();
        for owed in owed {
            self.lost(owed, outcome, out);
        }
        self.proposing.flight.clear();
        if outcome == StoredOutcome::Unknown {
            self.follow_what_flies();
        }
        self.state.dedup.ground();
        self.proposing.phase = Phase::Silent;
        self.follow_up(outcome, out);
    }

    /// Repetitions that still wait share the fate of what they repeat: that this copy is not stored
    /// says nothing of the other.
    fn follow_what_flies(&mut self) {
        let newest_ms = self.proposing.clock.newest_ms();
        for waiting in std::mem::take(&mut self.proposing.waiting) {
            let batch = Numbered::of(&waiting.publish.header);
            let repeats = batch.producer != ProducerId(0)
                && matches!(self.state.dedup.check(batch, newest_ms), Verdict::InFlight);
            if repeats {
                let reply = waiting.publish.reply;
                self.proposing.followers.push(Follower { batch, reply });
            } else {
                self.proposing.waiting.push_back(waiting);
            }
        }
    }

    /// The replica refused to take a proposal: nothing of it is stored.
    pub(in super::super) fn not_proposed(&mut self, number: u32, out: &mut Effects<R>) {
        let first = Place { term: self.proposing.term, run: self.proposing.run, number };
        let mut refused = Vec::new();
        while let Some(owed) = self.proposing.pending.pop_back_from(first) {
            refused.push(owed);
        }
        for owed in refused.into_iter().rev() {
            self.lost(owed, StoredOutcome::NotStored, out);
        }
        while self.proposing.flight.back().is_some_and(|last| *last >= first) {
            self.proposing.flight.pop_back();
        }
        // What was judged behind it is judged anew in the next run.
        self.proposing.phase = Phase::Breaking(StoredOutcome::Unknown);
    }

    /// Answers those who waited for what was in flight. `outcome`: of what is lost of that.
    fn follow_up(&mut self, outcome: StoredOutcome, out: &mut Effects<R>) {
        for Follower { batch, reply } in std::mem::take(&mut self.proposing.followers) {
            match self.state.dedup.check(batch, self.proposing.clock.newest_ms()) {
                Verdict::InFlight => self.proposing.followers.push(Follower { batch, reply }),
                Verdict::Duplicate(offset) => {
                    let range = range_of(batch.base, batch.record_count, offset);
                    out.push(Effect::Stored { reply, range });
                }
                // What it repeats may be stored behind all that is known here.
                _ if outcome == StoredOutcome::Unknown => {
                    out.push(Effect::Refused { reply, refusal: self.why_lost(outcome) });
                }
                Verdict::Fresh | Verdict::Unknown | Verdict::Full => {
                    // What it repeated is lost, and this copy's body was let go with it.
                    let refusal = self.why_lost(StoredOutcome::NotStored);
                    out.push(Effect::Refused { reply, refusal });
                }
                other => out.push(Effect::Refused { reply, refusal: refusal_of(other) }),
            }
        }
    }

    pub(in super::super) fn answer_opens(&mut self, out: &mut Effects<R>) {
        if let Some(lost) = &self.lost {
            let outcome = StoredOutcome::NotStored;
            let refusal = PublishRefusal::ReadOnly { lost: lost.clone(), outcome };
            let opens = self.proposing.opens.drain(..);
            out.extend(opens.map(|(_, ticket)| Effect::Opened(ticket, Err(refusal.clone()))));
        }
        let Some(term) = self.term() else { return };
        for (producer, ticket) in std::mem::take(&mut self.proposing.opens) {
            let next = match producer {
                None => Ok(Sequence(0)),
                Some((id, epoch)) => self.state.dedup.open(id, epoch),
            };
            let log_end = self.state.high_watermark;
            match next {
                Ok(next_sequence) => {
                    let state = PublisherState { next_sequence, log_end, term };
                    out.push(Effect::Opened(ticket, Ok(state)));
                }
                Err(Verdict::InFlight) => self.proposing.opens.push((producer, ticket)),
                Err(other) => out.push(Effect::Opened(ticket, Err(refusal_of(other)))),
            }
        }
    }
}
