//! Sockets and their addresses.

use core::ffi::c_void;

use super::*;

/// A socket (`struct sock`) that the verifier knows.
#[derive(Clone, Copy)]
pub struct Sock(pub *const c_void);

impl Sock {
    #[inline(always)]
    pub fn family(self) -> u16 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &SOCK_FAMILY) }
    }
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        // SAFETY: a direct load.
        unsafe { direct(self.0, &SOCK_NUM) }
    }
    /// The same by address, for what only recorded actions need.
    #[inline(always)]
    pub fn at(self) -> SockAt {
        SockAt(self.0 as u64)
    }
}

/// What stands in a socket address (`struct sockaddr`), by offset.
pub trait Address: Copy {
    fn half(self, offset: u32) -> u16;
    fn word(self, offset: u32) -> u32;
    /// Where it stands.
    fn address(self) -> u64;
}

/// One that the verifier knows, and that is long enough for every family.
#[derive(Clone, Copy)]
pub struct Sockaddr(pub *const c_void);

impl Address for Sockaddr {
    #[inline(always)]
    fn half(self, offset: u32) -> u16 {
        // SAFETY: the verifier knows the type and checks the offset.
        unsafe {
            self.0
                .byte_add(offset as usize)
                .cast::<u16>()
                .read_volatile()
        }
    }
    #[inline(always)]
    fn word(self, offset: u32) -> u32 {
        // SAFETY: as above.
        unsafe {
            self.0
                .byte_add(offset as usize)
                .cast::<u32>()
                .read_volatile()
        }
    }
    #[inline(always)]
    fn address(self) -> u64 {
        self.0 as u64
    }
}

/// One by address.
#[derive(Clone, Copy)]
pub struct SockaddrAt(pub u64);

impl Address for SockaddrAt {
    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }
    #[inline(always)]
    fn half(self, offset: u32) -> u16 {
        read(self.0 + u64::from(offset))
    }
    #[inline(always)]
    fn word(self, offset: u32) -> u32 {
        read(self.0 + u64::from(offset))
    }
}

/// A socket (`struct sock`) by address.
#[derive(Clone, Copy)]
pub struct SockAt(pub u64);

impl SockAt {
    #[inline(always)]
    pub fn family(self) -> u16 {
        member(self.0, &SOCK_FAMILY)
    }
    #[inline(always)]
    pub fn protocol(self) -> u32 {
        u32::from(member::<u16, _>(self.0, &SOCK_PROTOCOL))
    }
    #[inline(always)]
    pub fn local_port(self) -> u16 {
        member(self.0, &SOCK_NUM)
    }
    /// The cgroup in which it was made; of what was accepted, the one in which its listener was made.
    #[inline(always)]
    pub fn cgroup(self) -> CgroupAt {
        CgroupAt(member(self.0, &SOCK_CGROUP))
    }
    /// The peer's address: IPv4 in network order, or IPv6 words.
    #[inline(always)]
    pub fn peer4(self) -> u32 {
        member(self.0, &SOCK_DADDR)
    }
    #[inline(always)]
    pub fn peer6(self) -> [u32; 4] {
        let at = self.0 + SOCK_DADDR6.load();
        [read(at), read(at + 4), read(at + 8), read(at + 12)]
    }
    #[inline(always)]
    pub fn local4(self) -> u32 {
        member(self.0, &SOCK_RCV_SADDR)
    }
    #[inline(always)]
    pub fn local6(self) -> [u32; 4] {
        let at = self.0 + SOCK_RCV_SADDR6.load();
        [read(at), read(at + 4), read(at + 8), read(at + 12)]
    }
    /// In host byte order.
    #[inline(always)]
    pub fn peer_port(self) -> u16 {
        u16::from_be(member(self.0, &SOCK_DPORT))
    }
    /// Of a UNIX socket: the file that it is bound to.
    #[inline(always)]
    pub fn unix_dentry(self) -> DentryAt {
        DentryAt(member(self.0, &UNIX_SOCK_PATH_DENTRY))
    }
    /// Of a UNIX socket: address and length of its name after the family, 0 where it has none.
    #[inline(always)]
    pub fn unix_name(self) -> (u64, u32) {
        let address: u64 = member(self.0, &UNIX_SOCK_ADDR);
        if address == 0 {
            return (0, 0);
        }
        let len: u32 = member(address, &UNIX_ADDRESS_LEN);
        (address + UNIX_ADDRESS_NAME.load() + 2, len.wrapping_sub(2))
    }
}

/// The socket of a `struct socket` that the verifier knows, typed.
#[inline(always)]
pub fn sock_of(socket: *const c_void) -> Sock {
    // SAFETY: a direct load.
    Sock(unsafe { direct(socket, &SOCKET_SK) })
}

/// `SS_UNCONNECTED` (include/uapi/linux/net.h).
const SS_UNCONNECTED: u32 = 1;

/// Whether a connect of a `struct socket` that the verifier knows has begun already, or is over.
#[inline(always)]
pub fn has_connected(socket: *const c_void) -> bool {
    // SAFETY: a direct load.
    unsafe { direct::<u32, _>(socket, &SOCKET_STATE) > SS_UNCONNECTED }
}

#[inline(always)]
pub fn socket_type(socket: *const c_void) -> u32 {
    // SAFETY: a direct load.
    u32::from(unsafe { direct::<u16, _>(socket, &SOCKET_TYPE) })
}
