//! Counters of the kernel programs: every drop and every helper failure, by place.

macro_rules! counters {
    ($($name:ident = $text:literal),+ $(,)?) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "an index that is named like a constant")]
        #[repr(u32)]
        enum Index { $($name),+ , END }
        $(pub const $name: u32 = Index::$name as u32;)+
        pub const COUNT: usize = Index::END as usize;
        /// Names by index, as `agentwatch status` shows them.
        pub const NAMES: [&str; COUNT] = [$($text),+];
    };
}

counters! {
    VERDICT_RING_FULL = "verdict_ring_full",
    BULK_RING_FULL = "bulk_ring_full",
    FORK_RING_FULL = "fork_ring_full",
    NO_SCRATCH = "no_scratch",
    TAG_FAILED = "tag_failed",
    FOLD_FULL = "fold_full",
    CGROUP_FULL = "cgroup_map_full",
    READ_FAILED = "read_failed",
    OBJECTS_FULL = "objects_map_full",
    OWNERS_FULL = "owners_map_full",
    URING_OPENS_FULL = "uring_opens_map_full",
    TOO_DEEP = "too_deep",
    HOLDS_FULL = "hold_map_full",
    NOT_PARKED = "not_parked",
    NOT_KILLED = "not_killed",
}
