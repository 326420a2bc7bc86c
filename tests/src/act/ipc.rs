//! Operations on what processes share without files: System V objects, kernel keys, message queues.

use std::ffi::CStr;

use super::{Failure, Operation, Outcome, arguments, c_string, number, sys};

const SESSION_KEYRING: i32 = -3;
const USER_KEYRING: i32 = -4;

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
        name: "key-search",
        usage: "NAME (in the user's keyring)",
        run: |args| {
            let name = c_string(arguments::<1>(args)?[0])?;
            let kind = c"user";
            sys!(libc::syscall(
                libc::SYS_keyctl,
                libc::KEYCTL_SEARCH,
                USER_KEYRING,
                kind.as_ptr(),
                name.as_ptr(),
                0
            ))
            .map(drop)
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
            const JOIN_SESSION_KEYRING: u32 = 1;
            let none = std::ptr::null::<u8>();
            sys!(libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, none))?;
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
