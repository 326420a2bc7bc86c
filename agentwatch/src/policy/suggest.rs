//! "Did you mean" for a word that is not known.

/// Words that are longer than any key are far from all of them.
const LONGEST: usize = 32;
/// Changes between two words that are near: a letter more, less or other, or two neighbours swapped.
const NEAR: usize = 2;

/// "did you mean" where a known word is near, and the list of them where none is.
pub(super) fn suggestion(word: &str, known: &[&str], intro: &str) -> String {
    let word = word.to_lowercase();
    let near = known
        .iter()
        .filter(|candidate| word.len().max(candidate.len()) <= LONGEST)
        .map(|candidate| (strsim::osa_distance(&word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= NEAR && *distance < candidate.len())
        .min();
    match near {
        Some((_, candidate)) => format!("did you mean `{candidate}`?"),
        None => format!("{intro} `{}`", known.join("`, `")),
    }
}
