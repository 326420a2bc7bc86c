//! Finds out where this kernel keeps what an open was about at the moment when it has failed: by opens that fail in ways that are
//! known. See `agentwatch_common::opens`.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd as _, RawFd},
};

use agentwatch_common::opens::{Opens, REGISTERS, Site, WORDS};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData};

/// A directory in which there are a file and a symbolic link.
const DIRECTORY: &str = "/proc/self";
/// What the kernel adds to the flags of most.
const O_LARGEFILE: u32 = 0o100_000;

/// A way to open.
#[derive(Clone, Copy)]
enum Call {
    Open,
    Creat,
    Openat,
    Openat2,
}

/// An open that fails.
struct Trial {
    call: Call,
    name: &'static CStr,
    flags: i32,
    errno: i32,
}

/// All of them differ in what they are about, and come by different ways: what is found in all is no chance, and not the caller's.
const TRIALS: [Trial; 6] = [
    Trial {
        call: Call::Openat,
        name: c"status/agentwatch",
        flags: libc::O_NONBLOCK,
        errno: libc::ENOTDIR,
    },
    Trial {
        call: Call::Openat2,
        name: c"././././exe",
        flags: libc::O_NOFOLLOW | libc::O_NOCTTY,
        errno: libc::ELOOP,
    },
    Trial {
        call: Call::Openat,
        name: c"./././././.",
        flags: libc::O_WRONLY | libc::O_NONBLOCK,
        errno: libc::EISDIR,
    },
    Trial {
        call: Call::Open,
        name: c"/proc/self/agentwatch",
        flags: libc::O_RDWR | libc::O_NOCTTY,
        errno: libc::ENOENT,
    },
    Trial {
        call: Call::Creat,
        name: c"//proc/self/status/agentwatch",
        flags: libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC,
        errno: libc::ENOTDIR,
    },
    Trial {
        call: Call::Openat2,
        name: c"agentwatch-has-none",
        flags: libc::O_APPEND | libc::O_RDWR,
        errno: libc::ENOENT,
    },
];

/// What a trial was about, and what it showed.
struct Shown {
    flags: u32,
    errno: i32,
    opens: Opens,
}

/// Makes the opens, and enters what they show.
pub fn learn(map: &mut Array<&mut MapData, Opens>) -> Result<()> {
    let directory = File::open(DIRECTORY).with_context(|| format!("open {DIRECTORY}"))?;
    let shown = TRIALS
        .iter()
        .map(|trial| trial.make(map, &directory))
        .collect::<Result<Vec<_>>>()?;
    let site = site(&shown)?;
    let known = Opens { site, ..nobody() };
    map.set(0, known, 0).context("enter what failed opens show")
}

/// Nothing is known, and nobody learns.
fn nobody() -> Opens {
    Opens {
        site: Site::default(),
        learner: 0,
        shown: 0,
        expected: 0,
        names: 0,
        words: [0; WORDS],
    }
}

impl Trial {
    fn make(&self, map: &mut Array<&mut MapData, Opens>, directory: &File) -> Result<Shown> {
        let mut expected = [0; 8];
        for (to, from) in expected.iter_mut().zip(self.name.to_bytes()) {
            *to = *from;
        }
        let ask = Opens {
            learner: nix::unistd::gettid().as_raw().cast_unsigned(),
            expected: u64::from_le_bytes(expected),
            ..nobody()
        };
        map.set(0, ask, 0).context("ask for what an open shows")?;
        let errno = self.call(directory.as_raw_fd());
        let opens = map.get(&0, 0).context("read what an open showed")?;
        map.set(0, nobody(), 0)
            .context("look at no open any more")?;
        ensure!(
            errno == Some(self.errno),
            "opening {:?} gave {errno:?} in place of {}",
            self.name,
            self.errno
        );
        ensure!(
            opens.shown == 1,
            "put_unused_fd was called {} times in an open that fails",
            opens.shown
        );
        Ok(Shown {
            flags: self.flags.cast_unsigned(),
            errno: self.errno,
            opens,
        })
    }

    /// Calls the kernel, past any library's choice of the call. Gives back the error.
    fn call(&self, fd: RawFd) -> Option<i32> {
        let name = self.name.as_ptr();
        let (fd, flags) = (libc::c_long::from(fd), libc::c_long::from(self.flags));
        // SAFETY: the name ends with a NUL; a descriptor that is made against expectation is closed below.
        let result = unsafe {
            match self.call {
                #[cfg(target_arch = "x86_64")]
                Call::Open => libc::syscall(libc::SYS_open, name, flags, 0),
                #[cfg(target_arch = "x86_64")]
                Call::Creat => libc::syscall(libc::SYS_creat, name, 0),
                // Where there is no such system call, the words of registers are others, too.
                #[cfg(not(target_arch = "x86_64"))]
                Call::Open | Call::Creat => return None,
                Call::Openat => libc::syscall(libc::SYS_openat, fd, name, flags, 0),
                Call::Openat2 => {
                    let mut how: libc::open_how = std::mem::zeroed();
                    how.flags = u64::from(self.flags.cast_unsigned());
                    let size = size_of::<libc::open_how>();
                    libc::syscall(libc::SYS_openat2, fd, name, &raw const how, size)
                }
            }
        };
        if result < 0 {
            return io::Error::last_os_error().raw_os_error();
        }
        // SAFETY: it was just made, and nobody has it.
        unsafe { libc::close(result as RawFd) };
        None
    }
}

/// Where all of them keep what they are about.
fn site(shown: &[Shown]) -> Result<Site> {
    let address = |opens: &Opens| {
        u64::from(opens.words[REGISTERS]) | u64::from(opens.words[REGISTERS + 1]) << 32
    };
    let at = shown.first().map_or(0, |first| address(&first.opens));
    ensure!(
        at != 0 && shown.iter().all(|shown| address(&shown.opens) == at),
        "open, creat, openat and openat2 call put_unused_fd from different places"
    );
    // The stack first, from its end: what lies nearest is the function's own.
    let places = || (REGISTERS + 2..WORDS).chain(0..REGISTERS);
    let find = |what: &str, is: &dyn Fn(&Shown, usize) -> bool| -> Result<u32> {
        let place = places()
            .find(|place| shown.iter().all(|shown| is(shown, *place)))
            .with_context(|| format!("{what} of a failed open is nowhere to be found"))?;
        Ok(place as u32)
    };
    let word = |shown: &Shown, place: usize| shown.opens.words[place];
    Ok(Site {
        at,
        _pad: 0,
        error: find("the error", &|shown, place| {
            word(shown, place) == shown.errno.wrapping_neg().cast_unsigned()
        })?,
        name: find("the name", &|shown, place| {
            shown.opens.names >> place & 1 != 0
        })?,
        flags: find("the flags", &|shown, place| {
            word(shown, place) & !O_LARGEFILE == shown.flags
        })?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: u64 = 0xffff_ffff_8144_212a;

    /// What a kernel shows that keeps the error nearest, the flags in the middle of a word of eight bytes, and the name in a register.
    fn shown(trial: &Trial, chance: u32) -> Shown {
        let mut opens = Opens {
            shown: 1,
            names: 1 << 4 | 1 << 40,
            ..nobody()
        };
        opens.words = [chance; WORDS];
        opens.words[REGISTERS] = AT as u32;
        opens.words[REGISTERS + 1] = (AT >> 32) as u32;
        opens.words[REGISTERS + 2] = trial.errno.wrapping_neg().cast_unsigned();
        opens.words[REGISTERS + 5] = trial.flags.cast_unsigned() | O_LARGEFILE;
        Shown {
            flags: trial.flags.cast_unsigned(),
            errno: trial.errno,
            opens,
        }
    }

    fn all() -> Vec<Shown> {
        TRIALS
            .iter()
            .zip(7..)
            .map(|(trial, chance)| shown(trial, chance))
            .collect()
    }

    #[test]
    fn what_all_show_in_one_place_is_found() {
        let mut shown = all();
        // By chance, once.
        shown[0].opens.names |= 1 << 20;
        let found = site(&shown).expect("a site");
        let place = REGISTERS as u32;
        assert_eq!(
            (found.at, found.error, found.name, found.flags),
            (AT, place + 2, 40, place + 5)
        );
    }

    #[test]
    fn what_is_shown_by_some_alone_is_not_enough() {
        let mut shown = all();
        shown[3].opens.words[REGISTERS + 2] = 0;
        let error = site(&shown).expect_err("no error").to_string();
        assert_eq!(error, "the error of a failed open is nowhere to be found");
        let mut shown = all();
        shown[4].opens.names = 0;
        let error = site(&shown).expect_err("no name").to_string();
        assert_eq!(error, "the name of a failed open is nowhere to be found");
        let mut shown = all();
        shown[4].opens.words[REGISTERS] += 16;
        let error = site(&shown).expect_err("two places").to_string();
        assert!(error.contains("from different places"), "{error}");
    }
}
