//! Writes what the running kernel says into the programs' instructions: what CO-RE does, for which Rust's compiler has no
//! relocations. The instructions that wait for it have numbers that no other has (`agentwatch_common::offsets`).

use agentwatch_common::offsets::{CALL_CAST, CAST_TYPE, HAS_CAST, LOAD, MEMBERS, Member, OFFSET};
use anyhow::{Context as _, Result};
use object::{Endianness, Object as _, ObjectSection as _, SectionKind, read::elf::ElfFile64};
use serde::{Deserialize, Serialize};

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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    // What aya parses has to be aligned to eight bytes, which malloc's memory of this size is.
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
            if let Some((member, offset)) = place.and_then(|place| said_of(place.into(), facts)) {
                let offset = i16::try_from(offset)
                    .ok()
                    .filter(|offset| *offset < LOAD)
                    .with_context(|| {
                        format!(
                            "{} of struct {} stands at {offset} in this kernel, too far for one instruction",
                            member.paths.join(" or "),
                            member.parent
                        )
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
                    .and_then(|place| said_of(place, facts))
                    .map(|(_, offset)| offset),
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

/// The member in a place of the list, and its offset.
fn said_of(place: i32, facts: &Facts) -> Option<(&'static Member, u64)> {
    let place = usize::try_from(place).ok()?;
    MEMBERS.get(place).zip(facts.offsets.get(place).copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::load::OBJECT;

    fn facts(cast: Option<(u32, u32)>) -> Facts {
        Facts {
            offsets: (0..MEMBERS.len() as u64).map(|place| place * 8).collect(),
            cast,
        }
    }

    /// The instructions of an object.
    fn instructions(object: &[u8]) -> Vec<[u8; LEN]> {
        let file: ElfFile64<'_, Endianness> = ElfFile64::parse(object).expect("an object");
        let mut all = Vec::new();
        for section in file.sections() {
            if section.kind() == SectionKind::Text {
                let code = section.data().expect("code");
                let mut code = code.chunks_exact(LEN);
                while let Some(instruction) = code.next() {
                    all.push(instruction.try_into().expect("eight bytes"));
                    if instruction[0] == LOAD_NUMBER {
                        code.next();
                    }
                }
            }
        }
        all
    }

    fn number(instruction: &[u8; LEN]) -> i32 {
        i32::from_le_bytes(instruction[4..].try_into().expect("four bytes"))
    }

    fn is_load(instruction: &[u8; LEN]) -> bool {
        instruction[0] & CLASS == CLASS_LOAD && instruction[0] & MODE == MODE_MEMORY
    }

    fn offset(instruction: &[u8; LEN]) -> i16 {
        i16::from_le_bytes([instruction[2], instruction[3]])
    }

    #[test]
    fn nothing_is_left_to_be_written_and_nothing_else_is_changed() {
        let places = LOAD..LOAD + MEMBERS.len() as i16;
        for cast in [None, Some((7, 9))] {
            let relocated = relocate(OBJECT, &facts(cast)).expect("relocated");
            let (before, after) = (instructions(OBJECT), instructions(&relocated));
            assert_eq!(before.len(), after.len());
            let (mut loads, mut offsets, mut calls) = (0, 0, 0);
            for (before, after) in before.iter().zip(&after) {
                let mut expected = *before;
                if is_load(before) && places.contains(&offset(before)) {
                    loads += 1;
                    let place = offset(before) - LOAD;
                    expected[2..4].copy_from_slice(&(place * 8).to_le_bytes());
                } else if before[0] == MOVE {
                    let said = number(before);
                    let value = match said {
                        HAS_CAST => i32::from(cast.is_some()),
                        CAST_TYPE => cast.map_or(0, |_| 9),
                        _ if (OFFSET..OFFSET + MEMBERS.len() as i32).contains(&said) => {
                            offsets += 1;
                            (said - OFFSET) * 8
                        }
                        _ => said,
                    };
                    expected[4..].copy_from_slice(&value.to_le_bytes());
                } else if before[0] == CALL && before[1] == 0 && number(before) == CALL_CAST {
                    calls += 1;
                    expected = match cast {
                        Some(_) => [CALL, KERNEL_FUNCTION, 0, 0, 7, 0, 0, 0],
                        None => [MOVE, 0, 0, 0, 0, 0, 0, 0],
                    };
                }
                assert_eq!(*after, expected);
            }
            assert!(
                loads > 100 && offsets > 10 && calls > 0,
                "{loads} {offsets} {calls}"
            );
        }
    }

    #[test]
    fn what_is_no_members_has_no_members_number() {
        // A structure of ours that grows is seen here long before a load from it could be taken for a member's.
        for instruction in instructions(OBJECT) {
            let (offset, places) = (offset(&instruction), LOAD..LOAD + MEMBERS.len() as i16);
            assert!(
                !is_load(&instruction) || offset < LOAD / 2 || places.contains(&offset),
                "{instruction:?}"
            );
            let (from, to) = (OFFSET, OFFSET + MEMBERS.len() as i32);
            let is_near = (from - 0x1_0000..to + 0x1_0000).contains(&number(&instruction));
            assert!(
                !is_near || (instruction[0] == MOVE && (from..to).contains(&number(&instruction))),
                "{instruction:?}"
            );
        }
    }

    #[test]
    fn a_member_that_is_too_far_is_an_error() {
        let mut facts = facts(None);
        facts.offsets.fill(1 << 15);
        let error = relocate(OBJECT, &facts).expect_err("it does not fit");
        let said = error.to_string();
        assert!(
            said.contains(" of struct ") && said.contains("stands at 32768"),
            "{said}"
        );
    }
}
