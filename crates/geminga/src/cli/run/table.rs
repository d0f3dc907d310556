//! A table sink's rows, as they are printed at the end of a run.

/// Text of a table: aligned columns, numbers to the right.
pub(crate) fn render(title: Option<&str>, heading: &[String], rows: &[Vec<String>]) -> String {
    let heading: Vec<String> = heading
        .iter()
        .map(|name| printable(name).to_uppercase())
        .collect();
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let is_number = |column: usize| {
        let cells = || rows.iter().filter_map(|row| row.get(column));
        cells().any(|cell| !cell.is_empty())
            && cells().all(|cell| cell.is_empty() || cell.parse::<f64>().is_ok())
    };
    let width = |column: usize| {
        let all = std::iter::once(&heading)
            .chain(&rows)
            .filter_map(|row| row.get(column));
        all.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let columns: Vec<(bool, usize)> = (0..heading.len())
        .map(|column| (is_number(column), width(column)))
        .collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (at, (cell, (is_number, width))) in row.iter().zip(&columns).enumerate() {
            let gap = if at == 0 { "" } else { "  " };
            line.push_str(&match is_number {
                true => format!("{gap}{cell:>width$}"),
                false => format!("{gap}{cell:<width$}"),
            });
        }
        line.trim_end().to_owned()
    };
    let mut lines: Vec<String> = title.map(str::to_owned).into_iter().collect();
    lines.push(line(&heading));
    lines.extend(rows.iter().map(line));
    lines.join("\n")
}

/// Control characters of a payload do not reach the terminal.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stand_right_and_text_left() {
        let heading = ["region".to_owned(), "quakes".to_owned()];
        let row = |region: &str, quakes: &str| vec![region.to_owned(), quakes.to_owned()];
        assert_eq!(
            render(
                Some("By region"),
                &heading,
                &[row("Alaska\u{1b}[31m", "311"), row("Côte", "7")]
            ),
            "By region\nREGION      QUAKES\nAlaska[31m     311\nCôte             7"
        );
    }
}
