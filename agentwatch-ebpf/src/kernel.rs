//! The only module that reads kernel structs. Offsets are constants that the loader takes from the running kernel's BTF.
//!
//! Two ways to read: *direct* loads from pointers that the verifier knows the type of (cheap; for the paths every
//! action takes), and *probed* ones by address (for what only recorded actions need, in programs whose pointers have no type).
//! A direct load from a bad address gives 0, a probed one an error that is counted.

mod file;
mod socket;
mod task;

use core::ffi::c_void;

use agentwatch_common::{stats, with_members};
use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};

pub use self::{file::*, socket::*, task::*};
use crate::maps::count;

macro_rules! define {
    ($($name:ident = $parent:literal: $($path:literal)|+;)+) => {
        $(#[unsafe(no_mangle)] static $name: Global<u64> = Global::new(0);)+
    };
}
with_members!(define);

/// Address of the sequence counter that every change of a directory's place passes; 0 where the kernel does not show it.
#[unsafe(no_mangle)]
static RENAME_LOCK: Global<u64> = Global::new(0);

/// `MAX_ERRNO`: the pointers that are errors.
const MAX_ERRNO: u64 = 4095;

#[inline(always)]
unsafe fn direct<T: Copy>(base: *const c_void, offset: &Global<u64>) -> T {
    // SAFETY: the verifier knows the type at `base` and checks the offset.
    unsafe {
        base.cast::<u8>()
            .add(offset.load() as usize)
            .cast::<T>()
            .read_volatile()
    }
}

/// Reads by address; zero, and counted, where that fails.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks the address and writes only `value`.
    let error = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    };
    if error != 0 {
        count(stats::READ_FAILED);
        return T::default();
    }
    value
}

#[inline(always)]
fn member<T: Copy + Default>(address: u64, offset: &Global<u64>) -> T {
    read(address + offset.load())
}

/// The error that a pointer stands for.
#[inline(always)]
pub fn error_of(pointer: u64) -> Option<i32> {
    (pointer > u64::MAX - MAX_ERRNO).then(|| (pointer as i64).unsigned_abs() as i32)
}

/// What attributes an `iattr` at an address sets.
#[inline(always)]
pub fn attributes(iattr: u64) -> u32 {
    member(iattr, &IATTR_IA_VALID)
}

/// The file of a memory area that the verifier knows.
#[inline(always)]
pub fn mapped_file(area: *const c_void) -> File {
    // SAFETY: a direct load.
    File(unsafe { direct(area, &VM_FILE) })
}

/// The serial number of a key at an address.
#[inline(always)]
pub fn key_serial(key: u64) -> u32 {
    member(key, &KEY_SERIAL)
}

/// Whether a key at an address stands for a request that a program of the host's is to answer.
#[inline(always)]
pub fn is_key_request(key: u64) -> bool {
    let kind: u64 = member(key, &KEY_TYPE);
    let name: u64 = member(kind, &KEY_TYPE_NAME);
    read::<u64>(name) == u64::from_le_bytes(*b".request")
        && read::<u64>(name + 8) == u64::from_le_bytes(*b"_key_aut")
}

/// Whether a user namespace at an address is the host's.
#[inline(always)]
pub fn is_hosts_namespace(namespace: u64) -> bool {
    member::<u32>(namespace, &USER_NAMESPACE_LEVEL) == 0
}

/// The directory entry of a `struct path` that the verifier knows.
#[inline(always)]
pub fn path_dentry(path: *const c_void) -> Dentry {
    // SAFETY: a direct load.
    Dentry(unsafe { direct(path, &PATH_DENTRY) })
}

/// The argument of a hook as a number: some are null where the verifier of older kernels believes that they are not.
#[inline(always)]
pub fn raw_argument(context: *const c_void, n: usize) -> u64 {
    read(context as u64 + 8 * n as u64)
}

/// The file that a program is loaded from, of a `linux_binprm` that the verifier knows.
#[inline(always)]
pub fn binprm_file(bprm: *const c_void) -> File {
    // SAFETY: a direct load.
    File(unsafe { direct(bprm, &BINPRM_FILE) })
}

/// How many arguments it has, of a `linux_binprm` at an address.
#[inline(always)]
pub fn binprm_argc(bprm: u64) -> u32 {
    member(bprm, &BINPRM_ARGC)
}

/// The path that an execution was asked for by, and that of what runs it, as addresses: they are two where it is a script.
#[inline(always)]
pub fn binprm_names(bprm: u64) -> (u64, u64) {
    (member(bprm, &BINPRM_FILENAME), member(bprm, &BINPRM_INTERP))
}

/// The string of a `struct filename` at an address, as an address.
#[inline(always)]
pub fn filename(address: u64) -> u64 {
    member(address, &FILENAME_NAME)
}

/// `open_flag` of a `struct open_flags` at an address.
#[inline(always)]
pub fn open_flag(address: u64) -> u32 {
    member(address, &OPEN_FLAGS_OPEN_FLAG)
}
