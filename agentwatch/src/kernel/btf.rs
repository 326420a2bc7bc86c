//! Offsets of struct members, from the running kernel's BTF.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt as _, path::Path};

use agentwatch_common::offsets::{MEMBERS, Member};
use anyhow::{Context as _, Result, bail};
use btfparse::{Error, ErrorKind, Offset, Readable, TypeInformation, TypeVariant};

use super::relocate::Facts;

/// What gives an address a type, since 6.2, and the type that it gives to a counter of moves.
pub(super) const CAST: &str = "bpf_rdonly_cast";
pub(super) const COUNTER: &str = "seqcount";

/// Where a kernel shows its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What stands in the programs' instructions.
pub fn facts(path: &Path) -> Result<Facts> {
    let file = BtfFile::open(path)?;
    let types = TypeInformation::new(&file)
        .map_err(|error| anyhow::anyhow!("{error:?}"))
        .with_context(|| format!("parse the kernel's types in {}", path.display()))?;
    // A name may stand for a function or a typedef too.
    let structs: HashMap<String, _> = types
        .get()
        .iter()
        .filter(|(_, variant)| matches!(variant, TypeVariant::Struct(_)))
        .filter_map(|(id, _)| Some((types.name_of(*id)?, *id)))
        .filter(|(name, _)| name == COUNTER || MEMBERS.iter().any(|member| member.parent == name))
        .collect();
    let offsets = MEMBERS
        .iter()
        .map(|member| match offset(&types, &structs, member) {
            Ok(offset) => Ok(offset),
            Err(_) if member.paths.contains(&"") => Ok(0),
            Err(error) => Err(error).with_context(|| {
                format!(
                    "struct {} of this kernel has no member {}",
                    member.parent,
                    member.paths.join(" or ")
                )
            }),
        })
        .collect::<Result<_>>()?;
    let function = types.get().iter().find_map(|(id, variant)| {
        (matches!(variant, TypeVariant::Func(_)) && types.name_of(*id)? == CAST).then_some(*id)
    });
    Ok(Facts {
        offsets,
        cast: function.zip(structs.get(COUNTER).copied()),
    })
}

/// Opens a file of types.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| {
        format!(
            "open {}; hint: the kernel must be built with CONFIG_DEBUG_INFO_BTF",
            path.display()
        )
    })
}

fn offset(types: &TypeInformation, structs: &HashMap<String, u32>, member: &Member) -> Result<u64> {
    let id = *structs
        .get(member.parent)
        .with_context(|| format!("this kernel has no struct {}", member.parent))?;
    for path in member.paths {
        match types.offset_of(id, path) {
            Ok((_, Offset::ByteOffset(offset))) => return Ok(u64::from(offset)),
            Ok((_, Offset::BitOffsetAndSize(..))) => bail!("{path} is a bit field"),
            Err(_) => {}
        }
    }
    bail!("not found")
}

/// btfparse reads through this.
struct BtfFile(Vec<u8>);

impl BtfFile {
    fn open(path: &Path) -> Result<Self> {
        let file = open(path)?;
        // One sequential read: the file is served by the kernel and has no other cost.
        let len = file
            .metadata()
            .with_context(|| format!("stat {}", path.display()))?
            .len();
        let mut bytes = vec![0; usize::try_from(len).context("size of the BTF")?];
        file.read_exact_at(&mut bytes, 0)
            .with_context(|| format!("read {}", path.display()))?;
        Ok(Self(bytes))
    }
}

impl Readable for BtfFile {
    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let bytes = &self.0;
        let short = || Error::new(ErrorKind::IOError, "read past the end of the BTF");
        let start = usize::try_from(offset).map_err(|_| short())?;
        let end = start.checked_add(buffer.len()).ok_or_else(short)?;
        buffer.copy_from_slice(bytes.get(start..end).ok_or_else(short)?);
        Ok(())
    }
}
