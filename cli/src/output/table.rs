//! Columns as docker prints them: padded with spaces to the widest cell, three spaces between.

/// Rows under a header.
#[derive(Debug, Clone)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these column names.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|name| (*name).to_owned()).collect()] }
    }

    /// Adds a row. Control characters, which could come from an image, are left out.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let clean = |cell: String| cell.chars().filter(|c| !c.is_control()).collect();
        self.rows.push(cells.into_iter().map(clean).collect());
    }

    /// The text, ending in a line break.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 3));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a-long-name".to_owned(), "1B".to_owned()]);
        table.row(["ü\x1b[0m".to_owned(), "22B".to_owned()]);
        assert_eq!(table.render(), "NAME          SIZE\na-long-name   1B\nü[0m          22B\n");
    }

    proptest! {
        #[test]
        fn every_cell_of_a_column_starts_at_the_same_place(names in prop::collection::vec("[a-z]{0,12}", 0..8)) {
            let mut table = Table::new(&["NAME", "X"]);
            for name in &names {
                table.row([name.clone(), "X".to_owned()]);
            }
            let text = table.render();
            let places: std::collections::HashSet<_> = text.lines().map(|line| line.find('X')).collect();
            prop_assert_eq!(places.len(), 1);
            prop_assert_eq!(text.lines().count(), names.len() + 1);
        }
    }
}
