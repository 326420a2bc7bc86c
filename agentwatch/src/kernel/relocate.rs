//! Writes what the running kernel says into the programs' instructions: what CO-RE does, for which Rust's compiler has no
//! relocations. The instructions that wait for it have numbers that no other has (`agentwatch_common::offsets`).

use agentwatch_common::offsets::{CALL_CAST, CAST_TYPE, HAS_CAST, LOAD, OFFSET};
use anyhow::{Context as _, Result};
use object::{Endianness, Object as _, ObjectSection as _, SectionKind, read::elf::ElfFile64};

/// Bytes of an instruction.
const LEN: usize = 8;
/// include/uapi/linux/bpf.h, include/uapi/linux/bpf_common.h: a load of eight bytes into a register, which takes two instructions; a
/// call; a number moved to a register.
const LOAD_NUMBER: u8 = 0x18;
const CALL: u8 = 0x85;
const MOVE: u8 = 0xb7;
/// The class of loads from memory, and their mode.
const CLASS: u8 = 0x07;
const CLASS_LOAD: u8 = 0x01;
const MODE: u8 = 0xe0;
const MODE_MEMORY: u8 = 0x60;
/// `BPF_PSEUDO_KFUNC_CALL`, where a call has its source register.
const KERNEL_FUNCTION: u8 = 2 << 4;

/// What the running kernel says.
pub struct Facts {
    /// In the order of `MEMBERS`.
    pub offsets: Vec<u64>,
    /// Numbers, among the kernel's types, of `bpf_rdonly_cast` and of `struct seqcount`; none before 6.2.
    pub cast: Option<(u32, u32)>,
}

/// The object with it.
pub fn relocate(object: &[u8], facts: &Facts) -> Result<Vec<u8>> {
    let file: ElfFile64<'_, Endianness> =
        ElfFile64::parse(object).context("parse the programs' object")?;
    let mut relocated = object.to_vec();
    for section in file.sections() {
        if section.kind() != SectionKind::Text {
            continue;
        }
        let (start, len) = section.file_range().unwrap_or_default();
        let code = usize::try_from(start)
            .ok()
            .zip(usize::try_from(start + len).ok())
            .and_then(|(start, end)| relocated.get_mut(start..end))
            .context("a section of the programs' object lies outside of it")?;
        let mut instructions = code.chunks_exact_mut(LEN);
        while let Some(instruction) = instructions.next() {
            if instruction[0] == LOAD_NUMBER {
                instructions.next();
            } else {
                complete(instruction, facts)?;
            }
        }
    }
    Ok(relocated)
}

fn complete(instruction: &mut [u8], facts: &Facts) -> Result<()> {
    let [code, registers, low, high, number @ ..] = instruction else {
        return Ok(());
    };
    let number: &mut [u8; 4] = number
        .try_into()
        .context("an instruction has eight bytes")?;
    let said = i32::from_le_bytes(*number);
    match *code {
        code if code & CLASS == CLASS_LOAD && code & MODE == MODE_MEMORY => {
            let place = i16::from_le_bytes([*low, *high]).checked_sub(LOAD);
            if let Some(offset) = place.and_then(|place| member(place.into(), facts)) {
                let offset = i16::try_from(offset)
                    .ok()
                    .filter(|offset| *offset < LOAD)
                    .with_context(|| {
                        format!("a member of this kernel stands at {offset}, too far for one instruction")
                    })?;
                [*low, *high] = offset.to_le_bytes();
            }
        }
        MOVE => {
            let value = match said {
                HAS_CAST => Some(u64::from(facts.cast.is_some())),
                CAST_TYPE => Some(facts.cast.map_or(0, |(_, kind)| kind.into())),
                _ => said
                    .checked_sub(OFFSET)
                    .and_then(|place| member(place, facts)),
            };
            if let Some(value) = value {
                *number = i32::try_from(value)
                    .with_context(|| format!("{value} is too large for an instruction"))?
                    .to_le_bytes();
            }
        }
        CALL if said == CALL_CAST && *registers == 0 => match facts.cast {
            Some((function, _)) => {
                *registers = KERNEL_FUNCTION;
                *number = function.to_le_bytes();
            }
            // The branch is not taken, and the verifier wants to see something that it knows.
            None => {
                *code = MOVE;
                *number = [0; 4];
            }
        },
        _ => {}
    }
    Ok(())
}

/// The offset of the member in a place of the list.
fn member(place: i32, facts: &Facts) -> Option<u64> {
    facts.offsets.get(usize::try_from(place).ok()?).copied()
}
