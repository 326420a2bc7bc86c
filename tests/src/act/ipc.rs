//! Operations on what processes share without files: System V objects, kernel keys, message queues.

use std::{ffi::CStr, os::fd::AsRawFd as _};

use nix::sys::resource::Resource;

use super::{Failure, Operation, Outcome, arguments, c_string, number, process, sys};

const PROCESS_KEYRING: i32 = -2;
const SESSION_KEYRING: i32 = -3;
const USER_KEYRING: i32 = -4;

/// include/uapi/linux/shm.h.
const SHM_LOCK: i32 = 11;
const SHM_UNLOCK: i32 = 12;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "request-key",
        usage: "DESCRIPTION (of a user key that nobody has, with what a program of the host's is told)",
        run: |args| {
            let description = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::syscall(
                libc::SYS_request_key,
                c"user".as_ptr(),
                description.as_ptr(),
                c"told".as_ptr(),
                0
            ))
            .map(drop)
        },
    },
    Operation {
        name: "shm-attach",
        usage: "ID",
        run: |args| attach(id(args)?),
    },
    Operation {
        name: "shm-remove",
        usage: "ID",
        run: |args| remove_shm(id(args)?),
    },
    Operation {
        name: "shm-stat",
        usage: "ID",
        run: |args| {
            // SAFETY: plain data, all zeroes are a valid value.
            let mut about: libc::shmid_ds = unsafe { std::mem::zeroed() };
            sys!(libc::shmctl(id(args)?, libc::IPC_STAT, &raw mut about)).map(drop)
        },
    },
    Operation {
        name: "shm-stat-any",
        usage: "ID (by its place in the kernel's table, which asks for no right to it)",
        run: |args| {
            let mut about = [0_u64; 16];
            control(Kind::Memory, id(args)?, SHM_STAT_ANY, &mut about)
        },
    },
    Operation {
        name: "shm-set",
        usage: "ID (owner and mode, to what they are)",
        run: |args| set(Kind::Memory, id(args)?),
    },
    Operation {
        name: "shm-lock",
        usage: "ID (into memory, and out of it)",
        run: |args| {
            let id = id(args)?;
            control(Kind::Memory, id, SHM_LOCK, &mut [])?;
            control(Kind::Memory, id, SHM_UNLOCK, &mut [])
        },
    },
    Operation {
        name: "shm-figures",
        usage: "(how much of it the host has)",
        run: |_| control(Kind::Memory, 0, SHM_INFO, &mut [0; 16]),
    },
    Operation {
        name: "shm-get",
        usage: "KEY (of one that exists)",
        run: |args| sys!(libc::shmget(id(args)?, 0, 0)).map(drop),
    },
    Operation {
        name: "shm-own",
        usage: "",
        run: |_| {
            let id = sys!(libc::shmget(libc::IPC_PRIVATE, 4096, 0o600))?;
            let attached = attach(id);
            remove_shm(id)?;
            attached
        },
    },
    Operation {
        name: "sem-op",
        usage: "ID",
        run: |args| semaphore(id(args)?),
    },
    Operation {
        name: "sem-value",
        usage: "ID",
        run: |args| sys!(libc::semctl(id(args)?, 0, libc::GETVAL)).map(drop),
    },
    Operation {
        name: "sem-stat",
        usage: "ID",
        run: |args| control(Kind::Semaphores, id(args)?, libc::IPC_STAT, &mut [0; 16]),
    },
    Operation {
        name: "sem-set",
        usage: "ID (owner and mode, to what they are)",
        run: |args| set(Kind::Semaphores, id(args)?),
    },
    Operation {
        name: "sem-remove",
        usage: "ID",
        run: |args| sys!(libc::semctl(id(args)?, 0, libc::IPC_RMID)).map(drop),
    },
    Operation {
        name: "sem-own",
        usage: "",
        run: |_| {
            let id = sys!(libc::semget(libc::IPC_PRIVATE, 1, 0o600))?;
            let done = semaphore(id);
            sys!(libc::semctl(id, 0, libc::IPC_RMID))?;
            done
        },
    },
    Operation {
        name: "msg-send",
        usage: "ID",
        run: |args| send(id(args)?),
    },
    Operation {
        name: "msg-receive",
        usage: "ID",
        run: |args| receive(id(args)?),
    },
    Operation {
        name: "msg-stat",
        usage: "ID",
        run: |args| control(Kind::Queue, id(args)?, libc::IPC_STAT, &mut [0; 16]),
    },
    Operation {
        name: "msg-set",
        usage: "ID (owner, mode and length, to what they are)",
        run: |args| set(Kind::Queue, id(args)?),
    },
    Operation {
        name: "msg-remove",
        usage: "ID",
        run: |args| {
            let none = std::ptr::null_mut();
            sys!(libc::msgctl(id(args)?, libc::IPC_RMID, none)).map(drop)
        },
    },
    Operation {
        name: "msg-own",
        usage: "",
        run: |_| {
            let id = sys!(libc::msgget(libc::IPC_PRIVATE, 0o600))?;
            let done = send(id).and_then(|()| receive(id));
            sys!(libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()))?;
            done
        },
    },
    Operation {
        name: "msg-many",
        usage: "N (queues at the same time)",
        run: |args| {
            let count: usize = number(arguments::<1>(args)?[0])?;
            let mut made = Vec::new();
            let mut result = Ok(());
            while made.len() < count && result.is_ok() {
                result = sys!(libc::msgget(libc::IPC_PRIVATE, 0o600)).map(|id| made.push(id));
            }
            for id in made {
                sys!(libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()))?;
            }
            result
        },
    },
    Operation {
        name: "owner-of-many",
        usage: "N (descriptors at the same time, of which each says whom to tell of its events: F_SETOWN)",
        run: |args| {
            let count: u64 = number(arguments::<1>(args)?[0])?;
            let most = count + 64;
            nix::sys::resource::setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
            let mut open = Vec::new();
            for _ in 0..count {
                let file = std::fs::File::open("/proc/self/status")?;
                sys!(libc::fcntl(
                    file.as_raw_fd(),
                    libc::F_SETOWN,
                    std::process::id()
                ))?;
                open.push(file);
            }
            Ok(())
        },
    },
    Operation {
        name: "key-read",
        usage: "ID",
        run: |args| {
            let mut buffer = [0_u8; 64];
            keyctl(libc::KEYCTL_READ, id(args)?, &mut buffer)
        },
    },
    Operation {
        name: "key-describe",
        usage: "ID",
        run: |args| {
            let mut buffer = [0_u8; 128];
            keyctl(libc::KEYCTL_DESCRIBE, id(args)?, &mut buffer)
        },
    },
    Operation {
        name: "key-revoke",
        usage: "ID",
        run: |args| keyctl(libc::KEYCTL_REVOKE, id(args)?, &mut []),
    },
    Operation {
        name: "key-update",
        usage: "ID (with the bytes that it has)",
        run: |args| keyctl(libc::KEYCTL_UPDATE, id(args)?, &mut b"bytes".to_owned()),
    },
    Operation {
        name: "key-chown",
        usage: "ID (to this user)",
        run: |args| {
            let own = nix::unistd::geteuid().as_raw();
            key(libc::KEYCTL_CHOWN, id(args)?, own, u32::MAX)
        },
    },
    Operation {
        name: "key-setperm",
        usage: "ID (all rights for possessors and this user)",
        run: |args| key(libc::KEYCTL_SETPERM, id(args)?, 0x3f3f_0000, 0),
    },
    Operation {
        name: "key-timeout",
        usage: "ID (none)",
        run: |args| key(libc::KEYCTL_SET_TIMEOUT, id(args)?, 0, 0),
    },
    Operation {
        name: "key-invalidate",
        usage: "ID",
        run: |args| key(libc::KEYCTL_INVALIDATE, id(args)?, 0, 0),
    },
    Operation {
        name: "key-link",
        usage: "ID (into a keyring of this process)",
        run: |args| key(libc::KEYCTL_LINK, id(args)?, PROCESS_KEYRING as u32, 0),
    },
    Operation {
        name: "keyring-number",
        usage: "(of the user's keyring)",
        run: |_| key(libc::KEYCTL_GET_KEYRING_ID, USER_KEYRING, 0, 0),
    },
    Operation {
        name: "keyring-join",
        usage: "NAME KEY (as the session's keyring, and looks for a key in it)",
        run: |args| {
            let [name, wanted] = arguments(args)?;
            let (name, wanted) = (c_string(name)?, c_string(wanted)?);
            sys!(libc::syscall(
                libc::SYS_keyctl,
                libc::KEYCTL_JOIN_SESSION_KEYRING,
                name.as_ptr()
            ))
            .map_err(|failure| Failure::Usage(format!("join: {failure}")))?;
            search(SESSION_KEYRING, &wanted)
        },
    },
    Operation {
        name: "keyring-to-parent",
        usage: "(of a child, to this process)",
        run: |_| {
            join_new_keyring()?;
            process::in_child(|| {
                join_new_keyring()?;
                keyring_to_parent()
            })
        },
    },
    Operation {
        name: "own-keyring-to-parent",
        usage: "(of this process)",
        run: |_| {
            join_new_keyring()?;
            keyring_to_parent()
        },
    },
    Operation {
        name: "key-search",
        usage: "NAME (in the user's keyring)",
        run: |args| {
            let name = c_string(arguments::<1>(args)?[0])?;
            search(USER_KEYRING, &name)
        },
    },
    Operation {
        name: "key-add-user",
        usage: "(into the user's keyring)",
        run: |_| add_key(c"agentwatch-test", USER_KEYRING).map(drop),
    },
    Operation {
        name: "key-own",
        usage: "(in a session keyring of its own)",
        run: |_| {
            join_new_keyring()?;
            let key = add_key(c"agentwatch-test", SESSION_KEYRING)?;
            keyctl(libc::KEYCTL_READ, key, &mut [0_u8; 64])
        },
    },
    Operation {
        name: "mq-open",
        usage: "NAME r|w",
        run: |args| {
            let [name, how] = arguments(args)?;
            let flags = match how {
                "r" => libc::O_RDONLY,
                _ => libc::O_WRONLY,
            };
            let name = c_string(name)?;
            sys!(libc::mq_open(name.as_ptr(), flags | libc::O_NONBLOCK)).map(drop)
        },
    },
    Operation {
        name: "mq-unlink",
        usage: "NAME",
        run: |args| {
            let name = c_string(arguments::<1>(args)?[0])?;
            sys!(libc::mq_unlink(name.as_ptr())).map(drop)
        },
    },
    Operation {
        name: "posix-shm-own",
        usage: "NAME (makes it and takes it away)",
        run: |args| {
            let name = c_string(arguments::<1>(args)?[0])?;
            let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
            sys!(libc::shm_open(name.as_ptr(), flags, 0o600))?;
            sys!(libc::shm_unlink(name.as_ptr())).map(drop)
        },
    },
    Operation {
        name: "mq-own",
        usage: "NAME (makes it and takes it away)",
        run: |args| {
            let name = c_string(arguments::<1>(args)?[0])?;
            let none = std::ptr::null::<libc::mq_attr>();
            sys!(libc::mq_open(
                name.as_ptr(),
                libc::O_RDWR | libc::O_CREAT | libc::O_EXCL,
                0o600,
                none
            ))?;
            sys!(libc::mq_unlink(name.as_ptr())).map(drop)
        },
    },
];

fn id(args: &[String]) -> Result<i32, Failure> {
    number(arguments::<1>(args)?[0])
}

/// Kinds of System V objects.
#[derive(Clone, Copy)]
enum Kind {
    Memory,
    Semaphores,
    Queue,
}

/// Controls an object, with room for what is told of it: each kind's structure has less than 16 words.
fn control(kind: Kind, id: i32, command: i32, about: &mut [u64]) -> Outcome {
    let about = about.as_mut_ptr();
    match kind {
        Kind::Memory => sys!(libc::syscall(libc::SYS_shmctl, id, command, about)),
        Kind::Semaphores => sys!(libc::syscall(libc::SYS_semctl, id, 0, command, about)),
        Kind::Queue => sys!(libc::syscall(libc::SYS_msgctl, id, command, about)),
    }
    .map(drop)
}

/// Sets what an object of this user's has, without asking for it: that might be refused itself.
fn set(kind: Kind, id: i32) -> Outcome {
    /// `MSGMNB` (include/uapi/linux/msg.h).
    const QUEUE_BYTES: u64 = 16_384;
    let uid = u64::from(nix::unistd::geteuid().as_raw());
    let gid = u64::from(nix::unistd::getegid().as_raw());
    // All begin with a `struct ipc64_perm`: key, uid; gid, cuid; cgid, mode. A queue's length is its twelfth word.
    let mut about = [0_u64; 16];
    (about[0], about[1], about[2]) = (uid << 32, gid, 0o600 << 32);
    if let Kind::Queue = kind {
        about[11] = QUEUE_BYTES;
    }
    control(kind, id, libc::IPC_SET, &mut about)
}

fn attach(id: i32) -> Outcome {
    // SAFETY: a fresh mapping that nothing refers to; it ends with the process.
    let at = unsafe { libc::shmat(id, std::ptr::null(), 0) };
    if at as isize == -1 {
        return Err(nix::errno::Errno::last().into());
    }
    Ok(())
}

fn remove_shm(id: i32) -> Outcome {
    sys!(libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut())).map(drop)
}

fn semaphore(id: i32) -> Outcome {
    let mut up = libc::sembuf {
        sem_num: 0,
        sem_op: 1,
        sem_flg: 0,
    };
    sys!(libc::semop(id, &raw mut up, 1)).map(drop)
}

fn send(id: i32) -> Outcome {
    // The type, and eight bytes of text.
    let message = [1_u64, 0];
    sys!(libc::msgsnd(
        id,
        message.as_ptr().cast(),
        8,
        libc::IPC_NOWAIT
    ))
    .map(drop)
}

fn receive(id: i32) -> Outcome {
    let mut message = [0_u64; 2];
    sys!(libc::msgrcv(
        id,
        message.as_mut_ptr().cast(),
        8,
        0,
        libc::IPC_NOWAIT
    ))
    .map(drop)
}

/// An operation on a key that takes two numbers more.
fn key(command: u32, key: i32, second: u32, third: u32) -> Outcome {
    sys!(libc::syscall(libc::SYS_keyctl, command, key, second, third)).map(drop)
}

fn search(keyring: i32, name: &CStr) -> Outcome {
    let kind = c"user";
    sys!(libc::syscall(
        libc::SYS_keyctl,
        libc::KEYCTL_SEARCH,
        keyring,
        kind.as_ptr(),
        name.as_ptr(),
        0
    ))
    .map(drop)
}

/// Gives this process a session keyring that nobody else has.
fn join_new_keyring() -> Outcome {
    let none = std::ptr::null::<u8>();
    sys!(libc::syscall(
        libc::SYS_keyctl,
        libc::KEYCTL_JOIN_SESSION_KEYRING,
        none
    ))
    .map(drop)
}

fn keyring_to_parent() -> Outcome {
    sys!(libc::syscall(
        libc::SYS_keyctl,
        libc::KEYCTL_SESSION_TO_PARENT
    ))
    .map(drop)
}

fn keyctl(command: u32, key: i32, buffer: &mut [u8]) -> Outcome {
    sys!(libc::syscall(
        libc::SYS_keyctl,
        command,
        key,
        buffer.as_mut_ptr(),
        buffer.len()
    ))
    .map(drop)
}

/// Adds a key with a few bytes to a keyring.
pub(super) fn add_key(name: &CStr, keyring: i32) -> Result<i32, Failure> {
    let kind = c"user";
    let key = sys!(libc::syscall(
        libc::SYS_add_key,
        kind.as_ptr(),
        name.as_ptr(),
        b"bytes".as_ptr(),
        5,
        keyring
    ))?;
    Ok(key as i32)
}
