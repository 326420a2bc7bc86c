//! Commands: a program, by its file or by the last part of the path that it was asked for by, and its arguments.

use core::{ffi::c_void, hint::black_box};

use agentwatch_common::{
    event::Scratch,
    limits,
    policy::{BY_NAME, COMMAND_BASE, CommandKey},
    stats,
};
use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    helpers::generated::{bpf_loop, bpf_probe_read_user},
};

use super::{
    Decision,
    names::{RAW, read_name},
};
use crate::{
    emit,
    maps::{COMMANDS, count},
};

/// Decides on a command by its program and where the rest of its arguments stands in its memory, into `answer`. Gives back whether a rule
/// is about it.
#[inline(never)]
pub fn command(
    policy: u32,
    device: u32,
    inode: u64,
    arguments: &[u64; 2],
    answer: &mut Decision,
) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return 0;
    };
    begin_command(scratch, policy, device, inode);
    read_arguments(scratch, 0, arguments);
    let hit = look_command_up(scratch, answer);
    emit::give_back(scratch);
    hit
}

/// The same by the last part of the path that it was asked for by, which stands at an address.
#[inline(never)]
pub fn command_by_name(policy: u32, path: u64, arguments: &[u64; 2], answer: &mut Decision) -> u32 {
    let Some(scratch) = emit::take() else {
        count(stats::NO_SCRATCH);
        return 0;
    };
    let mut hit = 0;
    if read_name(scratch, path, u32::MAX) {
        begin_command(scratch, policy, BY_NAME, 0);
        // SAFETY: the slot is ours, and long enough.
        let mut last = unsafe {
            let data = (&raw mut (*scratch).data).cast::<u8>();
            let len = data.add(RAW + limits::NAME).cast::<u32>().read_volatile();
            let mut last = LastPart { data, len, used: 0 };
            bpf_loop(
                limits::NAME as u32,
                one_back as *mut c_void,
                (&raw mut last).cast(),
                0,
            );
            copy_last_part(&mut last);
            last
        };
        let used = (&raw mut last.used).cast::<u32>();
        // SAFETY: it stands here; read so that the verifier knows its bounds alone.
        let used = unsafe { used.read_volatile() };
        if used != 0 && used < limits::COMMAND_RULE as u32 {
            read_arguments(scratch, used + 1, arguments);
            hit = look_command_up(scratch, answer);
        }
    }
    emit::give_back(scratch);
    hit
}

#[repr(C)]
struct LastPart {
    data: *mut u8,
    len: u32,
    /// Bytes behind the last slash.
    used: u32,
}

/// A step from the end of a path towards its last slash.
extern "C" fn one_back(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `command_by_name` gave; the index is below the name's length.
    unsafe {
        let last = &mut *context.cast::<LastPart>();
        // Taken from the index, and not counted: the verifier would follow each count.
        last.used = index;
        if index >= last.len {
            return 1;
        }
        let at = (last.len - 1 - index) as usize & (limits::NAME - 1);
        if last.data.add(RAW + at).read_volatile() == b'/' {
            return 1;
        }
    }
    0
}

/// Copies the last part of a path to where a command's arguments stand in its key.
#[inline(always)]
unsafe fn copy_last_part(last: &mut LastPart) {
    // SAFETY: the context stands in the caller.
    unsafe {
        bpf_loop(
            limits::COMMAND_RULE as u32,
            one_byte as *mut c_void,
            core::ptr::from_mut(last).cast(),
            0,
        );
    }
}

extern "C" fn one_byte(index: u32, context: *mut c_void) -> i64 {
    // SAFETY: the context that `copy_last_part` gave; every index is below the data's length.
    unsafe {
        let last = &mut *context.cast::<LastPart>();
        if index >= last.used {
            return 1;
        }
        let from = (last.len - last.used + index) as usize & (limits::NAME - 1);
        let byte = last.data.add(RAW + from).read_volatile();
        last.data
            .add(COMMAND_KEY + (index as usize & 127))
            .write_volatile(byte);
    }
    0
}

/// Where the arguments stand in the key of a command.
const COMMAND_KEY: usize = 20;

/// Begins the key of a command in scratch memory.
#[inline(always)]
fn begin_command(scratch: *mut Scratch, policy: u32, device: u32, inode: u64) {
    // SAFETY: the slot is the caller's, and long enough.
    unsafe {
        let words = (&raw mut (*scratch).data).cast::<u32>();
        words.write_volatile(COMMAND_BASE + 8 * limits::COMMAND_RULE as u32);
        words.add(1).write_volatile(policy);
        words.add(2).write_volatile(device);
        words.add(3).write_volatile(inode as u32);
        words.add(4).write_volatile((inode >> 32) as u32);
        for word in 0..limits::COMMAND_RULE / 4 {
            words.add(5 + word).write_volatile(0);
        }
    }
}

/// Reads as many of the arguments as fit behind the first bytes.
#[inline(always)]
fn read_arguments(scratch: *mut Scratch, behind: u32, arguments: &[u64; 2]) {
    let len = arguments[1].wrapping_sub(arguments[0]);
    let room = if behind > limits::COMMAND_RULE as u32 {
        0
    } else {
        u64::from(limits::COMMAND_RULE as u32 - behind)
    };
    let len = if len > room { room } else { len };
    // The masks change nothing; the verifier is to see them.
    let (behind, len) = (black_box(behind) & 127, black_box(len as u32) & 127);
    // SAFETY: the slot is the caller's, and longer; the helper checks the address.
    let error = unsafe {
        let bytes = (&raw mut (*scratch).data).cast::<u8>().add(COMMAND_KEY);
        bpf_probe_read_user(
            bytes.add(behind as usize).cast(),
            len,
            arguments[0] as *const _,
        )
    };
    if len != 0 && error != 0 {
        count(stats::READ_FAILED);
    }
}

#[inline(always)]
fn look_command_up(scratch: *mut Scratch, answer: &mut Decision) -> u32 {
    // SAFETY: the slot is the caller's, and long enough.
    let key = unsafe { &*(&raw const (*scratch).data).cast::<Key<CommandKey>>() };
    let Some(found) = COMMANDS.get(key) else {
        return 0;
    };
    answer.effect = found.effect as u8;
    answer.rule = found.rule;
    1
}
