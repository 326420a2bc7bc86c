//! The two rings, as streams of bytes.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

/// One ring of the kernel.
pub struct Ring {
    ring: AsyncFd<Inner>,
}

struct Inner(RingBuf<MapData>);

impl AsRawFd for Inner {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Ring {
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: `Inner` owns the ring's descriptor and gives the same one for as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(Inner(ring), Interest::READABLE)? };
        Ok(Self { ring })
    }

    /// Waits until there may be something to take.
    pub async fn ready(&mut self) -> io::Result<()> {
        self.ring.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Takes up to `most` records; gives back how many there were.
    pub fn drain(&mut self, most: usize, mut each: impl FnMut(&[u8])) -> usize {
        for taken in 0..most {
            match self.ring.get_mut().0.next() {
                Some(item) => each(&item),
                None => return taken,
            }
        }
        most
    }
}
