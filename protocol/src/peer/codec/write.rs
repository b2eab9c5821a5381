//! Frames between brokers to bytes.

use super::fields::PutPeerFields;
use super::frame_type as t;
use crate::codec::EncodeBuf;
use crate::codec::fields::PutFields;
use crate::codec::write::whole;
use crate::peer::{
    Append, Appended, Beat, Beaten, Beats, Challenge, Fetched, Form, Formed, Forward, Forwarded,
    ForwardedAnswer, Hello, News, PeerFrame, Probed, Question, SegmentPart, SnapshotHead,
    SnapshotPart, Transfer, TransferAnswer, Transferred, VoteAsk, Voted,
};
use crate::types::StreamId;
use bytes::{BufMut, Bytes, BytesMut};

/// A frame without anything behind its fields.
fn fields(out: &mut EncodeBuf, frame_type: u8, stream: StreamId, put: impl FnOnce(&mut BytesMut)) {
    whole(out, (frame_type, stream.0), &[], put);
}

const LINK: StreamId = StreamId(0);

pub(super) fn frame(frame: &PeerFrame, out: &mut EncodeBuf) {
    match frame {
        PeerFrame::Hello(hello) => fields(out, t::HELLO, LINK, |f| put_hello(f, hello)),
        PeerFrame::Challenge(challenge) => {
            fields(out, t::CHALLENGE, LINK, |f| put_challenge(f, challenge));
        }
        PeerFrame::Proof(mac) => fields(out, t::PROOF, LINK, |f| f.put_slice(&mac.0)),
        PeerFrame::Ready(mac) => fields(out, t::READY, LINK, |f| f.put_slice(&mac.0)),
        PeerFrame::Heartbeat => fields(out, t::HEARTBEAT, LINK, |_| {}),
        PeerFrame::GoAway(go_away) => fields(out, t::GO_AWAY, LINK, |f| {
            f.put_u8(go_away.refusal as u8);
            f.put_u32_le(go_away.deadline_ms);
            f.put_prefixed(go_away.text.as_bytes());
        }),
        PeerFrame::Grant(stream, grant) => fields(out, t::GRANT, *stream, |f| f.put_grant(grant)),
        PeerFrame::Demand(stream, demand) => fields(out, t::DEMAND, *stream, |f| {
            f.put_u64_le(demand.cost);
            f.put_u64_le(demand.largest);
        }),
        _ => bulk_frame(frame, out),
    }
}

fn bulk_frame(frame: &PeerFrame, out: &mut EncodeBuf) {
    match frame {
        PeerFrame::AppendOpen(stream, address) => {
            fields(out, t::APPEND_OPEN, *stream, |f| f.put_address(*address));
        }
        PeerFrame::Append(append) => put_append(out, append),
        PeerFrame::Appended(appended) => {
            fields(out, t::APPENDED, appended.stream, |f| put_appended(f, appended));
        }
        PeerFrame::AppendClose(stream) => fields(out, t::APPEND_CLOSE, *stream, |_| {}),
        PeerFrame::Snapshot(stream, head) => {
            fields(out, t::SNAPSHOT, *stream, |f| put_snapshot(f, head));
        }
        PeerFrame::SnapshotPart(part) => put_snapshot_part(out, part),
        PeerFrame::SnapshotDone(stream, answer) => fields(out, t::SNAPSHOT_DONE, *stream, |f| {
            f.put_answer(answer.as_ref(), |f, vote| f.put_vote(*vote));
        }),
        PeerFrame::Fetch(fetch) => fields(out, t::FETCH, LINK, |f| {
            f.put_u32_le(fetch.request.0);
            f.put_address(fetch.address);
            f.put_u64_le(fetch.first.0);
            f.put_u64_le(fetch.last.0);
            f.put_u32_le(fetch.bytes_max);
        }),
        PeerFrame::Fetched(fetched) => put_fetched(out, fetched),
        _ => control_frame(frame, out),
    }
}

fn control_frame(frame: &PeerFrame, out: &mut EncodeBuf) {
    match frame {
        PeerFrame::Beats(beats) => fields(out, t::BEATS, LINK, |f| put_beats(f, beats)),
        PeerFrame::Beaten(beaten) => fields(out, t::BEATEN, LINK, |f| put_beaten(f, beaten)),
        PeerFrame::Vote(ask) => fields(out, t::VOTE, LINK, |f| put_vote_ask(f, ask)),
        PeerFrame::Voted(voted) => fields(out, t::VOTED, LINK, |f| put_voted(f, voted)),
        PeerFrame::Transfer(ask) => fields(out, t::TRANSFER, LINK, |f| put_transfer(f, ask)),
        PeerFrame::Transferred(answer) => {
            fields(out, t::TRANSFERRED, LINK, |f| put_transferred(f, answer));
        }
        PeerFrame::News(news) => fields(out, t::NEWS, LINK, |f| put_news(f, news)),
        PeerFrame::Forward(forward) => put_forward(out, forward),
        PeerFrame::Forwarded(forwarded) => put_forwarded(out, forwarded),
        PeerFrame::Probe(request) => fields(out, t::PROBE, LINK, |f| f.put_u32_le(request.0)),
        PeerFrame::Probed(probed) => fields(out, t::PROBED, LINK, |f| put_probed(f, probed)),
        PeerFrame::Form(form) => fields(out, t::FORM, LINK, |f| put_form(f, form)),
        PeerFrame::Formed(Formed { request, answer }) => fields(out, t::FORMED, LINK, |f| {
            f.put_u32_le(request.0);
            f.put_answer(answer.as_ref(), |_, ()| {});
        }),
        other => unreachable!("{other:?} is no frame of the control lane"),
    }
}

fn put_hello(f: &mut BytesMut, hello: &Hello) {
    f.put_slice(b"WEIP");
    f.put_u16_le(hello.version_min);
    f.put_u16_le(hello.version_max);
    f.put_u64_le(hello.features);
    f.put_u8(hello.lane as u8);
    f.put_slice(&hello.nonce.0);
    f.put_node(&hello.node);
}

fn put_challenge(f: &mut BytesMut, challenge: &Challenge) {
    f.put_u16_le(challenge.version);
    f.put_u64_le(challenge.features);
    f.put_flag(challenge.secret);
    f.put_slice(&challenge.nonce.0);
    f.put_node(&challenge.node);
}

/// The batches of all parts, in order.
fn batches_of(parts: &[SegmentPart]) -> Vec<Bytes> {
    parts.iter().flat_map(|part| &part.batches).cloned().collect()
}

fn put_append(out: &mut EncodeBuf, append: &Append) {
    whole(out, (t::APPEND, append.stream.0), &batches_of(&append.parts), |f| {
        f.put_u64_le(append.number);
        f.put_vote(append.vote);
        f.put_place(append.prev);
        f.put_place(append.commit);
        f.put_parts(&append.parts);
    });
}

fn put_appended(f: &mut BytesMut, appended: &Appended) {
    f.put_u64_le(appended.number);
    f.put_result(appended.result);
    f.put_grant(&appended.grant);
}

fn put_snapshot(f: &mut BytesMut, head: &SnapshotHead) {
    f.put_address(head.address);
    f.put_vote(head.vote);
    f.put_place(head.place);
    f.put_u32_le(head.chain);
    f.put_u64_le(head.log_end.0);
    f.put_u64_le(head.log_time_ms);
    f.put_place(head.membership_place);
    f.put_bytes_whole(&head.membership);
    f.put_u64_le(head.state_len);
    f.put_u32_le(head.state_crc);
}

fn put_snapshot_part(out: &mut EncodeBuf, part: &SnapshotPart) {
    with_content(out, (t::SNAPSHOT_PART, part.stream), &part.content, |f| {
        f.put_u64_le(part.position);
    });
}

fn put_fetched(out: &mut EncodeBuf, fetched: &Fetched) {
    let parts = fetched.answer.as_ref().map_or(&[][..], |batches| &batches.parts);
    whole(out, (t::FETCHED, LINK.0), &batches_of(parts), |f| {
        f.put_u32_le(fetched.request.0);
        f.put_answer(fetched.answer.as_ref(), |f, batches| {
            f.put_flag(batches.more);
            f.put_parts(&batches.parts);
        });
    });
}

fn put_beats(f: &mut BytesMut, beats: &Beats) {
    f.put_u32_le(beats.round);
    f.put_u16_le(beats.beats.len() as u16);
    for Beat { address, term, matching, commit } in &beats.beats {
        f.put_address(*address);
        f.put_u64_le(term.0);
        f.put_place(*matching);
        f.put_place(*commit);
    }
}

fn put_beaten(f: &mut BytesMut, beaten: &[Beaten]) {
    f.put_u16_le(beaten.len() as u16);
    for Beaten { round, address, result } in beaten {
        f.put_u32_le(*round);
        f.put_address(*address);
        f.put_result(*result);
    }
}

fn put_vote_ask(f: &mut BytesMut, ask: &VoteAsk) {
    f.put_u32_le(ask.request.0);
    f.put_address(ask.address);
    f.put_u8(ask.kind as u8);
    f.put_vote(ask.vote);
    f.put_place(ask.last);
}

fn put_voted(f: &mut BytesMut, voted: &Voted) {
    f.put_u32_le(voted.request.0);
    f.put_answer(voted.answer.as_ref(), |f, answer| {
        f.put_flag(answer.granted);
        f.put_vote(answer.vote);
        f.put_place(answer.last);
    });
}

fn put_transfer(f: &mut BytesMut, transfer: &Transfer) {
    f.put_u32_le(transfer.request.0);
    f.put_address(transfer.address);
    f.put_vote(transfer.vote);
    f.put_u64_le(transfer.target.0);
    f.put_place(transfer.last);
}

fn put_transferred(f: &mut BytesMut, transferred: &Transferred) {
    f.put_u32_le(transferred.request.0);
    f.put_answer(transferred.answer.as_ref(), |f, answer| match *answer {
        TransferAnswer::Obeyed => f.put_u8(0),
        TransferAnswer::VoteChanged(vote) => {
            f.put_u8(1);
            f.put_vote(vote);
        }
        TransferAnswer::NotFlushed(place) => {
            f.put_u8(2);
            f.put_place(place);
        }
    });
}

fn put_news(f: &mut BytesMut, news: &News) {
    f.put_u64_le(news.free_bytes);
    f.put_flag(news.draining);
    f.put_u32_le(news.gate);
    f.put_u16_le(news.led.len() as u16);
    for led in &news.led {
        f.put_u64_le(led.replica.0);
        f.put_u64_le(led.term.0);
        f.put_u64_le(led.log_start.0);
        f.put_u64_le(led.high_watermark.0);
        f.put_u64_le(led.bytes);
    }
}

/// Fields that end with the CRC of the content behind them.
fn with_content(
    out: &mut EncodeBuf,
    (frame_type, stream): (u8, StreamId),
    content: &Bytes,
    put: impl FnOnce(&mut BytesMut),
) {
    whole(out, (frame_type, stream.0), std::slice::from_ref(content), |f| {
        put(f);
        f.put_u32_le(crc32fast::hash(content));
    });
}

fn put_forward(out: &mut EncodeBuf, forward: &Forward) {
    let Forward { request, deadline_ms, question } = forward;
    let put = |f: &mut BytesMut, kind: u8| {
        f.put_u32_le(request.0);
        f.put_u32_le(*deadline_ms);
        f.put_u8(kind);
    };
    match question {
        Question::Command(command) => {
            with_content(out, (t::FORWARD, LINK), command, |f| put(f, 0));
        }
        Question::ReadIndex => fields(out, t::FORWARD, LINK, |f| put(f, 1)),
    }
}

fn put_forwarded(out: &mut EncodeBuf, forwarded: &Forwarded) {
    let put = |f: &mut BytesMut, kind: u8| {
        f.put_u32_le(forwarded.request.0);
        f.put_u8(kind);
    };
    match &forwarded.answer {
        Ok(ForwardedAnswer::Applied(change)) => {
            with_content(out, (t::FORWARDED, LINK), change, |f| put(f, 0));
        }
        Ok(ForwardedAnswer::ReadIndex(index)) => fields(out, t::FORWARDED, LINK, |f| {
            put(f, 1);
            f.put_u64_le(index.0);
        }),
        Err(refusal) => fields(out, t::FORWARDED, LINK, |f| {
            put(f, 2);
            f.put_refusal(refusal);
        }),
    }
}

fn put_probed(f: &mut BytesMut, probed: &Probed) {
    f.put_u32_le(probed.request.0);
    f.put_u128_le(probed.cluster);
    f.put_u64_le(probed.broker.0);
    f.put_u8(probed.state as u8);
    f.put_u16_le(probed.expect);
    f.put_u64_le(probed.seeds_hash);
    f.put_u32_le(probed.gate);
    f.put_prefixed(probed.client_address.as_bytes());
    f.put_prefixed(probed.peer_address.as_bytes());
    f.put_option(probed.rack.as_ref(), |f, n| f.put_prefixed(n.as_str().as_bytes()));
    f.put_prefixed(probed.name.as_str().as_bytes());
}

fn put_form(f: &mut BytesMut, form: &Form) {
    f.put_u32_le(form.request.0);
    f.put_u128_le(form.cluster);
    f.put_u64_le(form.broker.0);
    f.put_u16_le(form.seeds.len() as u16);
    for seed in &form.seeds {
        f.put_prefixed(seed.peer_address.as_bytes());
        f.put_u64_le(seed.broker.0);
        f.put_option(seed.voter, |f, replica| f.put_u64_le(replica.0));
    }
}
