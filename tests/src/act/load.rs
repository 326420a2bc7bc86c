//! Operations that ask much of the kernel at once: many processes, much memory, many names, many threads, and opens in a race.

use std::{
    fs::{self, File},
    os::fd::AsRawFd,
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    thread::{sleep, yield_now},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::{
        mman::{MapFlags, ProtFlags, mmap},
        stat::Mode,
        wait::waitpid,
    },
    unistd::{Pid, fork},
};

use super::{Failure, Operation, Outcome, arguments, number, process};

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "fork-at-once",
        usage: "N (so many children that live together; the errno of the first that is refused)",
        run: |args| {
            let [count] = arguments(args)?;
            let mut children = Vec::new();
            let mut outcome = Ok(());
            for _ in 0..number::<u32>(count)? {
                match process::waiting_child() {
                    Ok(child) => children.push(child),
                    Err(failure) => {
                        outcome = Err(failure);
                        break;
                    }
                }
            }
            children.into_iter().for_each(process::end_child);
            outcome
        },
    },
    Operation {
        name: "fork-bomb",
        usage: "MILLISECONDS (so long every process forks as often as it can; the errno of the last refusal)",
        run: fork_bomb,
    },
    Operation {
        name: "allocate",
        usage: "MIB (memory that is written to)",
        run: |args| {
            let [mib] = arguments(args)?;
            let mut memory = vec![0_u8; number::<usize>(mib)? << 20];
            memory.iter_mut().step_by(4096).for_each(|byte| *byte = 1);
            std::hint::black_box(&memory);
            Ok(())
        },
    },
    Operation {
        name: "make-names",
        usage: "DIR N (makes and removes so many files, each of another name)",
        run: |args| {
            let [dir, count] = arguments(args)?;
            for n in 0..number::<u32>(count)? {
                let path = Path::new(dir).join(format!("name-{n}"));
                File::create_new(&path)?;
                fs::remove_file(path)?;
            }
            Ok(())
        },
    },
    Operation {
        name: "await",
        usage: "FILE (until it is there)",
        run: |args| {
            let [file] = arguments(args)?;
            if await_file(file) {
                Ok(())
            } else {
                Err(Errno::ETIMEDOUT.into())
            }
        },
    },
    Operation {
        name: "threads-when",
        usage: "FILE N PATH (says FILE.ready, waits for FILE; then N threads that were waiting open PATH)",
        run: threads_when,
    },
    Operation {
        name: "race-open",
        usage: "SEQUENCE DIR NAME (until SEQUENCE says 0: nobody reads NAME in DIR while it is even)",
        run: race_open,
    },
    Operation {
        name: "race-made",
        usage: "MILLISECONDS DIR NAME [MADE] (threads open NAME in DIR whenever it is there; with MADE another makes that, with NAME in it, and renames it to DIR)",
        run: race_made,
    },
];

/// How long one waits for another.
const PATIENCE: Duration = Duration::from_secs(120);

fn await_file(file: &str) -> bool {
    let begin = Instant::now();
    while !Path::new(file).exists() && begin.elapsed() < PATIENCE {
        sleep(Duration::from_millis(20));
    }
    Path::new(file).exists()
}

fn fork_bomb(args: &[String]) -> Outcome {
    let [milliseconds] = arguments(args)?;
    let end = Instant::now() + Duration::from_millis(number(milliseconds)?);
    let parent = Pid::this();
    let mut outcome = Ok(());
    while Instant::now() < end {
        // SAFETY: the actor has one thread; a child goes on with this loop.
        match unsafe { fork() } {
            Ok(_) => {}
            Err(errno) => {
                outcome = Err(errno.into());
                sleep(Duration::from_millis(1));
            }
        }
    }
    if Pid::this() != parent {
        // SAFETY: ends this process at once, without running what its parent registered.
        unsafe { libc::_exit(0) };
    }
    while waitpid(None, None).is_ok() {}
    outcome
}

fn threads_when(args: &[String]) -> Outcome {
    let [file, count, path] = arguments(args)?;
    let count = number::<usize>(count)?;
    let results: Vec<Result<File, std::io::Error>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|_| {
                scope.spawn(|| {
                    await_file(file);
                    File::open(path)
                })
            })
            .collect();
        if let Err(error) = File::create(format!("{file}.ready")) {
            return vec![Err(error)];
        }
        threads
            .into_iter()
            .filter_map(|thread| thread.join().ok())
            .collect()
    });
    let refused = results
        .iter()
        .filter(|result| matches!(result, Err(error) if error.raw_os_error() == Some(libc::EACCES)))
        .count();
    match (results.len(), refused) {
        (all, 0) if all == count => Ok(()),
        (all, refused) if all == refused && all == count => Err(Errno::EACCES.into()),
        (all, refused) => Err(Failure::Usage(format!("{refused} of {all} were refused"))),
    }
}

/// Opens a file by a descriptor of its directory, again and again, while others move that directory. They keep a number: even
/// while the file may not be read, odd while it may, 0 at the end.
fn race_open(args: &[String]) -> Outcome {
    let [sequence, dir, name] = arguments(args)?;
    let file = File::options().read(true).write(true).open(sequence)?;
    let length = std::num::NonZeroUsize::new(4096).expect("a page is not empty");
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a shared mapping of a file of that length, which stays to the end of this process.
    let memory = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, &file, 0) }?;
    // SAFETY: it is mapped, aligned, and only ever used as atomics.
    let sequence = unsafe { memory.cast::<AtomicU32>().as_ref() };
    // Where it is on its way it is not found.
    let dir = loop {
        match open(dir, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
            Err(Errno::ENOENT) if sequence.load(Ordering::SeqCst) != 0 => {}
            opened => break opened?,
        }
    };
    let (mut refused, mut read) = (0_u32, 0_u32);
    loop {
        let before = sequence.load(Ordering::SeqCst);
        if before == 0 {
            break;
        }
        let opened = openat(
            &dir,
            name,
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        );
        let after = sequence.load(Ordering::SeqCst);
        match opened {
            Ok(file) if before == after && before % 2 == 0 => {
                return Err(Failure::Usage(format!(
                    "descriptor {} while it was out of scope, after {refused} refusals",
                    file.as_raw_fd()
                )));
            }
            Ok(_) => read += 1,
            Err(Errno::EACCES) => refused += 1,
            Err(errno) => return Err(errno.into()),
        }
    }
    if refused < 100 || read < 100 {
        return Err(Failure::Usage(format!(
            "no race: {refused} refusals, {read} reads"
        )));
    }
    Ok(())
}

/// Opens a file that comes and goes, as soon as it is there. With `made` a thread of ours is who makes it, by renaming its directory,
/// and others take it away. It is opened each time, or never.
fn race_made(args: &[String]) -> Outcome {
    const THREADS: u32 = 3;
    let (milliseconds, dir, name, made) = match args {
        [milliseconds, dir, name] => (milliseconds, dir, name, None),
        [milliseconds, dir, name, made] => (milliseconds, dir, name, Some(Path::new(made))),
        _ => return Err(Failure::Usage("three or four arguments".to_owned())),
    };
    let end = Instant::now() + Duration::from_millis(number(milliseconds)?);
    let dir = Path::new(dir);
    let path = dir.join(name);
    let (opened, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    let open = || -> Outcome {
        while Instant::now() < end {
            // To look needs no right, and is not recorded.
            if fs::metadata(&path).is_err() {
                yield_now();
                continue;
            }
            match File::open(&path) {
                Ok(_) => opened.fetch_add(1, Ordering::SeqCst),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EACCES) => refused.fetch_add(1, Ordering::SeqCst),
                    Some(libc::ENOENT) => 0,
                    _ => return Err(error.into()),
                },
            };
        }
        Ok(())
    };
    let make = |made: &Path| -> Outcome {
        while Instant::now() < end {
            fs::create_dir(made)?;
            fs::write(made.join(name), "made")?;
            // As it is opened after the rename, so that something is known of it.
            File::open(made.join(name))?;
            while dir.exists() && Instant::now() < end {
                sleep(Duration::from_micros(100));
            }
            if !dir.exists() {
                fs::rename(made, dir)?;
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let mut threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
        threads.extend(made.map(|made| scope.spawn(move || make(made))));
        threads.into_iter().try_for_each(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|_| Err(Failure::Usage("a thread ended early".to_owned())))
        })
    })?;
    match (opened.into_inner(), refused.into_inner()) {
        (opened, 0) if opened >= 100 => Ok(()),
        (0, refused) if refused >= 100 => Err(Errno::EACCES.into()),
        (opened, refused) => Err(Failure::Usage(format!(
            "opened {opened} times and refused {refused} times"
        ))),
    }
}
