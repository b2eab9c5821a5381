//! The client of the Weir message broker.
//!
//! ```no_run
//! use weir_client::{Client, Message};
//!
//! # async fn run() -> weir_client::Result<()> {
//! let client = Client::builder().endpoints(["weir://127.0.0.1:7420"]).name("orders").connect().await?;
//!
//! let orders = client.publisher("orders").build().await?;
//! let stored = orders.publish(Message::new("hello").key("c42")).await?; // Ok means flushed
//! println!("partition {} offset {}", stored.partition, stored.offset);
//!
//! let mut billing = client.consumer("orders", "billing").subscribe().await?;
//! while let Some(message) = billing.next().await {
//!     let message = message?; // an error is final; reconnects are invisible
//!     println!("{:?}", message.payload());
//!     message.ack(); // this and all earlier ones of its partition
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! - **Nothing waits for ever.** Every message has a deadline that covers waiting for room, for
//!   credit, retries and the answer. When it passes, the error lists the last causes.
//! - **Nothing is unbounded.** A publisher holds at most its window, a consumer its credit, each
//!   by count and by bytes.
//! - **Every message ends as stored, not stored, or unknown** ([`Error::outcome`]). The client
//!   itself retries only where the outcome is certain, or under the same sequence, so that a
//!   retry is never stored twice.
//! - **Overload is not an error to handle everywhere**: the client waits for the broker's credit
//!   until the deadline. With [`OnFull::Fail`] and [`Publisher::try_send`] it surfaces at once,
//!   with a [`Reason`] and a hint when to try again, and the message is given back.
//! - **Connections and leaders come and go** ([`Client::status`]): publishers go on under their
//!   sequences, consumers behind the last message they received, wherever their partition is led.
//!
//! Each method says whether it is cancel safe: what is lost when its future is dropped.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod client;
mod config;
mod consumer;
mod driver;
mod error;
mod message;
mod publisher;
mod retry;
pub mod seams;
mod shared;
mod status;

pub use client::{Client, ClientBuilder, TopicChange, TopicPage};
pub use config::{
    CONNECT_TIMEOUT_DEFAULT, CREDIT_DEFAULT, DEADLINE_DEFAULT, LINGER_DEFAULT, Limits, OnFull,
    REQUEST_TIMEOUT_DEFAULT, Start, WINDOW_DEFAULT,
};
pub use consumer::{Consumer, ConsumerBuilder, ConsumerHandle, Delivered, Record, RecordBatch};
pub use error::{Error, ErrorKind, Reason, Result};
pub use message::Message;
pub use publisher::{
    BatchReceipt, CloseReport, Permit, Publisher, PublisherBuilder, Receipt, Stored, TrySendError,
};
pub use status::Status;
pub use weir_protocol::error_code::{Action, ErrorCode, Outcome};
pub use weir_protocol::frame::{
    BrokerView, Durability, Overflow, PartitionView, TopicConfig, TopicView,
};
pub use weir_protocol::types::Name;
