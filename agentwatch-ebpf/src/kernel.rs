//! The only module that reads kernel structs. Offsets are numbers in the instructions, which the loader
//! writes there from the running kernel's BTF.
//!
//! Two ways to read: *direct* loads from pointers that the verifier knows the type of (cheap; for the paths every
//! action takes), and *probed* ones by address (for what only recorded actions need, in programs whose pointers have no type).
//! A direct load from a bad address gives 0, a probed one an error that is counted.

mod file;
mod socket;
mod task;

use core::{arch::asm, ffi::c_void, hint::assert_unchecked, mem::transmute_copy};

use agentwatch_common::{offsets, stats, with_members};
use aya_ebpf::{Global, helpers::generated::bpf_probe_read_kernel};

pub use self::{file::*, socket::*, task::*};
use crate::maps::count;

/// The member in a place of the list, as the running kernel has it.
struct Offset<const N: usize>;

macro_rules! define {
    ($($name:ident = $parent:literal: $($path:literal)|+;)+) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "the members' names")]
        enum Place { $($name),+ }
        $(const $name: Offset<{ Place::$name as usize }> = Offset;)+
    };
}
with_members!(define);

impl<const N: usize> Offset<N> {
    /// In bytes.
    #[inline(always)]
    fn load(&self) -> u64 {
        let offset: u64;
        // SAFETY: moves a number.
        unsafe {
            asm!(
                "{0} = {1}",
                out(reg) offset,
                const offsets::OFFSET + N as i32,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        offset
    }
}

/// Address of the sequence counter that every change of a directory's place passes; 0 where the kernel does not show it.
#[unsafe(no_mangle)]
static RENAME_LOCK: Global<u64> = Global::new(0);

/// `MAX_ERRNO`: the pointers that are errors.
const MAX_ERRNO: u64 = 4095;

/// One instruction: the offset is written into it.
#[inline(always)]
unsafe fn direct<T: Copy, const N: usize>(base: *const c_void, _: &Offset<N>) -> T {
    let value: u64;
    macro_rules! load {
        ($how:literal) => {
            // SAFETY: the verifier knows the type at `base` and checks the offset.
            unsafe {
                asm!(
                    concat!("{0} = *(", $how, " *)({1} + {2})"),
                    out(reg) value,
                    in(reg) base,
                    const offsets::LOAD as i32 + N as i32,
                    options(readonly, nostack, preserves_flags)
                );
            }
        };
    }
    match size_of::<T>() {
        1 => load!("u8"),
        2 => load!("u16"),
        4 => load!("u32"),
        _ => load!("u64"),
    }
    const { assert!(matches!(size_of::<T>(), 1 | 2 | 4 | 8) && cfg!(target_endian = "little")) };
    // SAFETY: a shorter load clears the rest of the register; its bytes come first.
    unsafe {
        assert_unchecked(size_of::<T>() == 8 || value >> (8 * size_of::<T>() % 64) == 0);
        transmute_copy(&value)
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
fn member<T: Copy + Default, const N: usize>(address: u64, offset: &Offset<N>) -> T {
    read(address + offset.load())
}

/// A member of what may not be there: zero then, and that is no failure.
#[inline(always)]
fn member_if_any<T: Copy + Default, const N: usize>(address: u64, offset: &Offset<N>) -> T {
    let mut value = T::default();
    // SAFETY: the helper checks the address and writes only `value`: zeroes where it cannot be read.
    unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast(),
            size_of::<T>() as u32,
            address.wrapping_add(offset.load()) as *const c_void,
        )
    };
    value
}

/// Whether the kernel lets a program say what stands at an address (`bpf_rdonly_cast`, since 6.2): then it is read like what the
/// verifier knows, for a tenth of what a helper's call costs.
#[inline(always)]
fn has_cast() -> bool {
    let has: u64;
    // SAFETY: moves a number.
    unsafe {
        asm!(
            "{0} = {1}",
            out(reg) has,
            const offsets::HAS_CAST,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    has != 0
}

/// A sequence counter (`struct seqcount`) at an address, where there is [`has_cast`].
#[inline(always)]
fn counter(address: u64) -> u32 {
    let value: u64;
    // SAFETY: the kernel gives back the same address, and a load from a bad one gives 0. Its calls leave r6 and further as they are.
    unsafe {
        asm!(
            "r2 = {kind}",
            "call {cast}",
            "r0 = *(u32 *)(r0 + 0)",
            kind = const offsets::CAST_TYPE,
            cast = const offsets::CALL_CAST,
            inlateout("r1") address => _,
            out("r2") _,
            out("r3") _,
            out("r4") _,
            out("r5") _,
            lateout("r0") value,
            options(readonly, nostack, preserves_flags)
        );
    }
    value as u32
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
    member::<u32, _>(namespace, &USER_NAMESPACE_LEVEL) == 0
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

/// Whether there is a `struct filename` at an address, and the name begins with these bytes.
#[inline(always)]
pub fn begins(address: u64, with: u64) -> bool {
    let name = try_read(address.wrapping_add(FILENAME_NAME.load()));
    name.and_then(try_read) == Some(with)
}

/// A word at an address that may be none.
#[inline(always)]
fn try_read(address: u64) -> Option<u64> {
    let mut word = 0u64;
    // SAFETY: the helper checks the address and writes only `word`.
    let error =
        unsafe { bpf_probe_read_kernel((&raw mut word).cast(), 8, address as *const c_void) };
    (error == 0).then_some(word)
}

/// A `struct io_open` by address: what io_uring is to open.
#[derive(Clone, Copy)]
pub struct IoOpenAt(u64);

impl IoOpenAt {
    /// Of a request (`struct io_kiocb`) by address.
    #[inline(always)]
    pub fn of(request: u64) -> Self {
        Self(request + IO_KIOCB_CMD.load())
    }
    #[inline(always)]
    pub fn fd(self) -> i32 {
        member(self.0, &IO_OPEN_DFD)
    }
    #[inline(always)]
    pub fn flags(self) -> u32 {
        member::<u64, _>(self.0, &IO_OPEN_FLAGS) as u32
    }
    /// Address of the name.
    #[inline(always)]
    pub fn name(self) -> u64 {
        filename(member(self.0, &IO_OPEN_FILENAME))
    }
}

/// What came of an io_uring request.
#[inline(always)]
pub fn uring_result(request: u64) -> i32 {
    member(request, &IO_KIOCB_RES)
}
