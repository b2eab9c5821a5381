//! Bytes to frames between brokers.

use super::fields::Input;
use super::frame_type as t;
use crate::codec::fields::Fields;
use crate::codec::{DecodeError, RawFrame};
use crate::frame::Demand;
use crate::limits::BROKERS_MAX;
use crate::peer::limits::{
    BEAT_BYTES, BEATEN_BYTES_MIN, BEATS_MAX, LED_BYTES, MEMBERSHIP_BYTES_MAX, NEWS_MAX,
    SEED_BYTES_MIN,
};
use crate::peer::{
    Append, Appended, Beat, Beaten, Beats, Challenge, Fetch, Fetched, FetchedBatches, Form, Formed,
    Forward, Forwarded, ForwardedAnswer, Hello, Lane, Led, Mac, MemberState, News, Nonce,
    PeerFrame, PeerGoAway, Probed, Question, Seed, SnapshotHead, SnapshotPart, Transfer,
    TransferAnswer, Transferred, VoteAnswer, VoteAsk, VoteKind, Voted,
};
use crate::types::{BrokerId, Index, Offset, ReplicaId, Term};

/// Decodes a frame whose CRC was checked; none for an unknown type.
pub(super) fn frame(raw: RawFrame) -> Result<Option<PeerFrame>, DecodeError> {
    let RawFrame { frame_type, stream, fields, body, .. } = raw;
    let mut input = Input { fields: Fields { frame_type, rest: fields }, stream, body };
    let i = &mut input;
    let frame = match frame_type {
        0x40..=0x4f => link_frame(i)?,
        0x10..=0x1f | 0x50..=0x5f => bulk_frame(i)?,
        _ => control_frame(i)?,
    };
    if frame.is_some() && !input.body.is_empty() {
        return Err(input.fields.bad("body: this frame has none, or a shorter one"));
    }
    Ok(frame)
}

fn link_frame(i: &mut Input) -> Result<Option<PeerFrame>, DecodeError> {
    let f = &mut i.fields;
    Ok(Some(match f.frame_type {
        t::HELLO => PeerFrame::Hello(hello(f)?),
        t::CHALLENGE => PeerFrame::Challenge(challenge(f)?),
        t::PROOF => PeerFrame::Proof(Mac(f.take("mac")?)),
        t::READY => PeerFrame::Ready(Mac(f.take("mac")?)),
        t::HEARTBEAT => PeerFrame::Heartbeat,
        t::GO_AWAY => PeerFrame::GoAway(PeerGoAway {
            refusal: f.refusal_of_peer()?,
            deadline_ms: f.u32("deadline_ms")?,
            text: f.text("text")?,
        }),
        _ => return Ok(None),
    }))
}

fn bulk_frame(i: &mut Input) -> Result<Option<PeerFrame>, DecodeError> {
    let f = &mut i.fields;
    Ok(Some(match f.frame_type {
        t::GRANT => PeerFrame::Grant(i.stream()?, i.fields.grant()?),
        t::DEMAND => {
            let demand = Demand { cost: f.u64("cost")?, largest: f.u64("largest")? };
            PeerFrame::Demand(i.stream()?, demand)
        }
        t::APPEND_OPEN => PeerFrame::AppendOpen(i.stream()?, i.fields.address()?),
        t::APPEND => PeerFrame::Append(append(i)?),
        t::APPENDED => PeerFrame::Appended(appended(i)?),
        t::APPEND_CLOSE => PeerFrame::AppendClose(i.stream()?),
        t::SNAPSHOT => PeerFrame::Snapshot(i.stream()?, snapshot(&mut i.fields)?),
        t::SNAPSHOT_PART => PeerFrame::SnapshotPart(snapshot_part(i)?),
        t::SNAPSHOT_DONE => PeerFrame::SnapshotDone(i.stream()?, i.fields.answer(Fields::vote)?),
        t::FETCH => PeerFrame::Fetch(fetch(f)?),
        t::FETCHED => PeerFrame::Fetched(fetched(i)?),
        _ => return Ok(None),
    }))
}

fn control_frame(i: &mut Input) -> Result<Option<PeerFrame>, DecodeError> {
    let f = &mut i.fields;
    Ok(Some(match f.frame_type {
        t::BEATS => PeerFrame::Beats(beats(f)?),
        t::BEATEN => PeerFrame::Beaten(beaten(f)?),
        t::VOTE => PeerFrame::Vote(vote_ask(f)?),
        t::VOTED => PeerFrame::Voted(voted(f)?),
        t::TRANSFER => PeerFrame::Transfer(transfer(f)?),
        t::TRANSFERRED => PeerFrame::Transferred(transferred(f)?),
        t::NEWS => PeerFrame::News(news(f)?),
        t::FORWARD => PeerFrame::Forward(forward(i)?),
        t::FORWARDED => PeerFrame::Forwarded(forwarded(i)?),
        t::PROBE => PeerFrame::Probe(f.request()?),
        t::PROBED => PeerFrame::Probed(probed(f)?),
        t::FORM => PeerFrame::Form(form(f)?),
        t::FORMED => {
            let (request, answer) = (f.request()?, f.answer(|_| Ok(()))?);
            PeerFrame::Formed(Formed { request, answer })
        }
        _ => return Ok(None),
    }))
}

fn hello(f: &mut Fields) -> Result<Hello, DecodeError> {
    if f.take("magic")? != *b"WEIP" {
        return Err(f.bad("magic: is the peer a Weir broker?"));
    }
    Ok(Hello {
        version_min: f.u16("version_min")?,
        version_max: f.u16("version_max")?,
        features: f.u64("features")?,
        lane: Lane::from_u8(f.u8("lane")?).ok_or(f.bad("lane"))?,
        nonce: Nonce(f.take("nonce")?),
        node: f.node()?,
    })
}

fn challenge(f: &mut Fields) -> Result<Challenge, DecodeError> {
    Ok(Challenge {
        version: f.u16("version")?,
        features: f.u64("features")?,
        secret: f.flag("secret")?,
        nonce: Nonce(f.take("nonce")?),
        node: f.node()?,
    })
}

fn append(i: &mut Input) -> Result<Append, DecodeError> {
    let stream = i.stream()?;
    let f = &mut i.fields;
    let number = f.u64("number")?;
    if number == 0 {
        return Err(f.bad("number"));
    }
    Ok(Append {
        stream,
        number,
        vote: f.vote()?,
        prev: f.place("prev")?,
        commit: f.place("commit")?,
        parts: i.parts()?,
    })
}

fn appended(i: &mut Input) -> Result<Appended, DecodeError> {
    let stream = i.stream()?;
    let f = &mut i.fields;
    Ok(Appended { stream, number: f.u64("number")?, result: f.result()?, grant: f.grant()? })
}

fn snapshot(f: &mut Fields) -> Result<SnapshotHead, DecodeError> {
    let address = f.address()?;
    let vote = f.vote()?;
    let place = f.place("place")?;
    let chain = f.u32("chain")?;
    let log_end = Offset(f.u64("log_end")?);
    let log_time_ms = f.u64("log_time_ms")?;
    let membership_place = f.place("membership place")?;
    let membership = f.bytes("membership")?;
    if membership.len() > MEMBERSHIP_BYTES_MAX {
        return Err(f.bad("membership"));
    }
    Ok(SnapshotHead {
        address,
        vote,
        place,
        chain,
        log_end,
        log_time_ms,
        membership_place,
        membership,
        state_len: f.u64("state_len")?,
        state_crc: f.u32("state_crc")?,
    })
}

fn snapshot_part(i: &mut Input) -> Result<SnapshotPart, DecodeError> {
    let stream = i.stream()?;
    let position = i.fields.u64("position")?;
    let content = i.content()?;
    // A sender's number: what is computed from it must not overflow.
    match position.checked_add(content.len() as u64) {
        Some(_) => Ok(SnapshotPart { stream, position, content }),
        None => Err(i.fields.bad("position")),
    }
}

fn fetch(f: &mut Fields) -> Result<Fetch, DecodeError> {
    let (request, address) = (f.request()?, f.address()?);
    let (first, last) = (Index(f.u64("first")?), Index(f.u64("last")?));
    if first == Index(0) || first > last {
        return Err(f.bad("first: it is 0 or behind the last"));
    }
    Ok(Fetch { request, address, first, last, bytes_max: f.u32("bytes_max")? })
}

fn fetched(i: &mut Input) -> Result<Fetched, DecodeError> {
    let request = i.fields.request()?;
    let answer = match i.fields.answer(|f| f.flag("more"))? {
        Ok(more) => Ok(FetchedBatches { more, parts: i.parts()? }),
        Err(refusal) => Err(refusal),
    };
    Ok(Fetched { request, answer })
}

fn beats(f: &mut Fields) -> Result<Beats, DecodeError> {
    let round = f.u32("round")?;
    let count = f.count("beats", (BEAT_BYTES, BEATS_MAX))?;
    let read = |f: &mut Fields| {
        Ok(Beat {
            address: f.address()?,
            term: Term(f.u64("term")?),
            matching: f.place("matching")?,
            commit: f.place("commit")?,
        })
    };
    let beats = (0..count).map(|_| read(f)).collect::<Result<_, DecodeError>>()?;
    Ok(Beats { round, beats })
}

fn beaten(f: &mut Fields) -> Result<Vec<Beaten>, DecodeError> {
    let count = f.count("beaten", (BEATEN_BYTES_MIN, BEATS_MAX))?;
    let read = |f: &mut Fields| {
        Ok(Beaten { round: f.u32("round")?, address: f.address()?, result: f.result()? })
    };
    (0..count).map(|_| read(f)).collect()
}

fn vote_ask(f: &mut Fields) -> Result<VoteAsk, DecodeError> {
    Ok(VoteAsk {
        request: f.request()?,
        address: f.address()?,
        kind: VoteKind::from_u8(f.u8("vote kind")?).ok_or(f.bad("vote kind"))?,
        vote: f.vote()?,
        last: f.place("last")?,
    })
}

fn voted(f: &mut Fields) -> Result<Voted, DecodeError> {
    let request = f.request()?;
    let answer = f.answer(|f| {
        Ok(VoteAnswer { granted: f.flag("granted")?, vote: f.vote()?, last: f.place("last")? })
    })?;
    Ok(Voted { request, answer })
}

fn transfer(f: &mut Fields) -> Result<Transfer, DecodeError> {
    Ok(Transfer {
        request: f.request()?,
        address: f.address()?,
        vote: f.vote()?,
        target: ReplicaId(f.u64("target")?),
        last: f.place("last")?,
    })
}

fn transferred(f: &mut Fields) -> Result<Transferred, DecodeError> {
    let request = f.request()?;
    let answer = f.answer(|f| match f.u8("outcome")? {
        0 => Ok(TransferAnswer::Obeyed),
        1 => f.vote().map(TransferAnswer::VoteChanged),
        2 => f.place("flushed").map(TransferAnswer::NotFlushed),
        _ => Err(f.bad("outcome")),
    })?;
    Ok(Transferred { request, answer })
}

fn news(f: &mut Fields) -> Result<News, DecodeError> {
    let free_bytes = f.u64("free_bytes")?;
    let draining = f.flag("draining")?;
    let gate = f.u32("gate")?;
    let count = f.count("led", (LED_BYTES, NEWS_MAX))?;
    let read = |f: &mut Fields| {
        Ok(Led {
            replica: ReplicaId(f.u64("replica")?),
            term: Term(f.u64("term")?),
            log_start: Offset(f.u64("log_start")?),
            high_watermark: Offset(f.u64("high_watermark")?),
            bytes: f.u64("bytes")?,
        })
    };
    let led = (0..count).map(|_| read(f)).collect::<Result<_, DecodeError>>()?;
    Ok(News { free_bytes, draining, gate, led })
}

fn forward(i: &mut Input) -> Result<Forward, DecodeError> {
    let f = &mut i.fields;
    let (request, deadline_ms) = (f.request()?, f.u32("deadline_ms")?);
    let question = match f.u8("question")? {
        0 => Question::Command(i.content()?),
        1 => Question::ReadIndex,
        _ => return Err(f.bad("question")),
    };
    Ok(Forward { request, deadline_ms, question })
}

fn forwarded(i: &mut Input) -> Result<Forwarded, DecodeError> {
    let f = &mut i.fields;
    let request = f.request()?;
    let answer = match f.u8("answer")? {
        0 => Ok(ForwardedAnswer::Applied(i.content()?)),
        1 => Ok(ForwardedAnswer::ReadIndex(Index(f.u64("read index")?))),
        2 => Err(f.refusal()?),
        _ => return Err(f.bad("answer")),
    };
    Ok(Forwarded { request, answer })
}

fn probed(f: &mut Fields) -> Result<Probed, DecodeError> {
    Ok(Probed {
        request: f.request()?,
        cluster: f.u128("cluster")?,
        broker: BrokerId(f.u64("broker")?),
        state: MemberState::from_u8(f.u8("state")?).ok_or(f.bad("state"))?,
        expect: f.u16("expect")?,
        seeds_hash: f.u64("seeds_hash")?,
        gate: f.u32("gate")?,
        client_address: f.network_address("client_address")?,
        peer_address: f.network_address("peer_address")?,
        rack: f.option("rack", Fields::name)?,
        name: f.name("name")?,
    })
}

fn form(f: &mut Fields) -> Result<Form, DecodeError> {
    let (request, cluster) = (f.request()?, f.u128("cluster")?);
    let broker = BrokerId(f.u64("broker")?);
    let count = f.count("seeds", (SEED_BYTES_MIN, BROKERS_MAX))?;
    let read = |f: &mut Fields| {
        Ok(Seed {
            peer_address: f.network_address("seed address")?,
            broker: BrokerId(f.u64("seed broker")?),
            voter: f.option("seed voter", Fields::u64)?.map(ReplicaId),
        })
    };
    let seeds = (0..count).map(|_| read(f)).collect::<Result<_, DecodeError>>()?;
    Ok(Form { request, cluster, broker, seeds })
}
