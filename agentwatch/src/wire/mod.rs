//! The unix sockets between our own processes: frames of a 32-bit big-endian length and that many bytes of JSON;
//! batches of events have a form of their own ([`batch`]).
//!
//! Whoever reads treats the other end as hostile: a frame longer than [`MAX_FRAME`] or one that does not parse
//! ends the connection with an error that says so, and nothing else.

pub mod batch;
pub mod collector;
pub mod control;

use anyhow::{Context as _, Result, ensure};
use bytes::Buf as _;
use futures_util::{SinkExt as _, StreamExt as _};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{io::AsyncWriteExt as _, net::UnixStream};
use tokio_util::codec::{Framed, LengthDelimitedCodec};

/// Longest frame, in bytes.
pub const MAX_FRAME: usize = 8 << 20;

/// A connection that speaks frames.
pub struct Connection {
    framed: Framed<UnixStream, LengthDelimitedCodec>,
}

impl Connection {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            framed: LengthDelimitedCodec::builder()
                .max_frame_length(MAX_FRAME)
                .new_framed(stream),
        }
    }

    /// Sends one message.
    pub async fn send<T: Serialize>(&mut self, message: &T) -> Result<()> {
        let bytes = serde_json::to_vec(message).context("encode a frame")?;
        self.framed
            .send(bytes::Bytes::from(bytes))
            .await
            .context("send a frame")
    }

    /// Sends bytes that are a frame already, without copying them. One that is given up half way leaves the connection useless.
    pub async fn send_frame(&mut self, frame: bytes::Bytes) -> Result<()> {
        ensure!(
            frame.len() <= MAX_FRAME,
            "a frame of {} bytes is too long",
            frame.len()
        );
        let head = (frame.len() as u32).to_be_bytes();
        let mut parts = head.as_slice().chain(frame);
        self.framed
            .get_mut()
            .write_all_buf(&mut parts)
            .await
            .context("send a frame")
    }

    /// The next frame as it is, `None` when the other end has closed.
    pub async fn receive_frame(&mut self) -> Result<Option<bytes::BytesMut>> {
        self.framed.next().await.transpose().context("read a frame")
    }

    /// The next message, `None` when the other end has closed.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(frame) = self.framed.next().await else {
            return Ok(None);
        };
        let frame = frame.context("read a frame")?;
        serde_json::from_slice(&frame)
            .map(Some)
            .context("a frame is not a message that is known here")
    }

    /// The next part of the collector's answer, `None` when the other end has closed.
    pub async fn receive_answer(&mut self) -> Result<Option<collector::Answer>> {
        match self.receive_frame().await? {
            Some(frame) => collector::Answer::read(&frame).map(Some),
            None => Ok(None),
        }
    }

    /// User and group of the process at the other end, as the kernel knows it.
    pub fn peer(&self) -> Result<tokio::net::unix::UCred> {
        self.framed
            .get_ref()
            .peer_cred()
            .context("read the peer's credentials")
    }
}

/// The same frames on a blocking socket, for `run`: between fork and exec there is no runtime.
pub mod blocking {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use anyhow::{Context as _, Result, ensure};
    use serde::{Serialize, de::DeserializeOwned};

    use super::MAX_FRAME;

    pub fn send<T: Serialize>(mut stream: &UnixStream, message: &T) -> Result<()> {
        let bytes = serde_json::to_vec(message).context("encode a frame")?;
        let len = u32::try_from(bytes.len())
            .ok()
            .filter(|len| *len as usize <= MAX_FRAME);
        let len = len.with_context(|| format!("a message of {} bytes is too long", bytes.len()))?;
        stream
            .write_all(&len.to_be_bytes())
            .and_then(|()| stream.write_all(&bytes))
            .context("send a frame")
    }

    pub fn receive<T: DeserializeOwned>(mut stream: &UnixStream) -> Result<T> {
        let mut len = [0; 4];
        stream.read_exact(&mut len).context("read a frame")?;
        let len = u32::from_be_bytes(len) as usize;
        ensure!(len <= MAX_FRAME, "a frame of {len} bytes is too long");
        let mut bytes = vec![0; len];
        stream.read_exact(&mut bytes).context("read a frame")?;
        serde_json::from_slice(&bytes).context("a frame is not a message that is known here")
    }
}
