//! Maps of numbers that stand in this process's memory too: a store is seen by the kernel's programs whole or not at all.

use std::{
    num::NonZeroUsize,
    ptr::NonNull,
    slice,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use agentwatch_common::{event::FoldMarks, limits, policy::Binding};
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

/// An array map, as atomics.
pub(super) struct Shared<A> {
    /// Keeps the map.
    _map: Map,
    words: NonNull<A>,
    len: usize,
}

// SAFETY: the words are atomics in memory that lives as long as the process.
unsafe impl<A: Sync> Send for Shared<A> {}

impl<A> Shared<A> {
    /// `len`: words of all the map's values together.
    fn map(map: Map, len: usize) -> Result<Self> {
        let Map::Array(data) = &map else {
            anyhow::bail!("a map that is shared with the kernel's programs is no array");
        };
        let bytes = NonZeroUsize::new(len * size_of::<A>()).context("there are values")?;
        let words = Self::whole(data, bytes).context("map a table of the kernel's programs")?;
        Ok(Self {
            _map: map,
            words,
            len,
        })
    }

    fn whole(data: &MapData, bytes: NonZeroUsize) -> nix::Result<NonNull<A>> {
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a shared mapping of the whole map, which nothing else in this process refers to; it is never unmapped.
        let words = unsafe { mmap(None, bytes, access, MapFlags::MAP_SHARED, data.fd(), 0) };
        Ok(words?.cast())
    }

    fn words(&self) -> &[A] {
        // SAFETY: the mapping has as many, and they are atomics.
        unsafe { slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

/// What is in force for each session.
pub(super) type Bindings = Shared<AtomicU64>;

impl Bindings {
    pub(super) fn of_sessions(map: Map) -> Result<Self> {
        const { assert!(size_of::<Binding>() == size_of::<AtomicU64>()) };
        Self::map(map, limits::SESSIONS)
    }

    pub(super) fn get(&self, slot: u32) -> Binding {
        let word = self.words()[slot as usize].load(Ordering::Acquire);
        Binding {
            policy: word as u32,
            flags: (word >> 32) as u32,
        }
    }

    pub(super) fn set(&self, slot: u32, binding: Binding) {
        let word = u64::from(binding.policy) | u64::from(binding.flags) << 32;
        self.words()[slot as usize].store(word, Ordering::Release);
    }
}

/// How many tasks of each session wait.
pub(super) struct Held(Shared<AtomicU64>);

impl Held {
    pub(super) fn of_sessions(map: Map) -> Result<Self> {
        Shared::map(map, limits::SESSIONS).map(Self)
    }

    /// A session begins in a slot: what is left there is another's.
    pub(super) fn clear(&self, slot: u32) {
        self.0.words()[slot as usize].store(0, Ordering::Release);
    }

    pub(super) fn one_less(&self, slot: u32) {
        self.0.words()[slot as usize].fetch_sub(1, Ordering::AcqRel);
    }
}

/// The marks of folds, by their index.
pub(super) type Marks = Shared<AtomicU32>;

impl Marks {
    pub(super) fn of_folds(map: Map) -> Result<Self> {
        const { assert!(size_of::<FoldMarks>() == limits::FOLD_GROUP * size_of::<AtomicU32>()) };
        Self::map(map, limits::FOLDS)
    }

    pub(super) fn get(&self, index: u32) -> u32 {
        self.words()[index as usize].load(Ordering::Acquire)
    }

    pub(super) fn set(&self, index: u32, mark: u32) {
        self.words()[index as usize].store(mark, Ordering::Release);
    }
}
