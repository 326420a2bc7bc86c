//! Tables for a terminal: columns as wide as their widest cell.

/// Renders rows below their heads; the first column is aligned left, the others are too.
pub fn render(heads: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        std::iter::once(heads)
            .chain(rows.iter().map(Vec::as_slice))
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |row: &[String]| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut lines = vec![line(heads), line(&rule)];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

/// The same as Markdown, numbers to the right.
pub fn markdown(heads: &[String], rows: &[Vec<String>]) -> String {
    let line = |row: &[String]| format!("| {} |", row.join(" | "));
    let mut alignment = vec!["---".to_owned()];
    alignment.extend(heads.iter().skip(1).map(|_| "---:".to_owned()));
    let mut lines = vec![line(heads), line(&alignment)];
    lines.extend(rows.iter().map(|row| line(row)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let heads = ["a", "bb"].map(str::to_owned);
        let rows = vec![["longer", "x"].map(str::to_owned).to_vec()];
        assert_eq!(render(&heads, &rows), "a       bb\n------  --\nlonger  x");
        assert_eq!(
            markdown(&heads, &rows),
            "| a | bb |\n| --- | ---: |\n| longer | x |"
        );
    }
}
