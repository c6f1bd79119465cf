//! One line of aligned cells.

use std::fmt::Write;

use anstyle::Style;

/// A line under construction. Cells begin at given columns; one that is too long pushes the next ones aside,
/// and these come back to their columns as soon as there is room.
pub(super) struct Row<'a> {
    text: &'a mut String,
    /// Characters so far, styles not counted.
    columns: usize,
    has_color: bool,
}

impl<'a> Row<'a> {
    pub fn new(text: &'a mut String, has_color: bool) -> Self {
        Row { text, columns: 0, has_color }
    }

    /// Appends `cell` at `column`, or one space behind what is there.
    pub fn cell(&mut self, column: usize, style: Style, cell: &str) {
        if cell.is_empty() {
            return;
        }
        let gap = column.saturating_sub(self.columns).max(usize::from(self.columns > 0));
        self.text.extend(std::iter::repeat_n(' ', gap));
        if self.has_color {
            write!(self.text, "{style}{cell}{style:#}").expect("a string takes every write");
        } else {
            self.text.push_str(cell);
        }
        self.columns += gap + cell.chars().count();
    }

    /// Like [`Row::cell`], but so that the cell ends before column `end`.
    pub fn cell_right(&mut self, end: usize, style: Style, cell: &str) {
        self.cell(end.saturating_sub(cell.chars().count()), style, cell);
    }

    /// Makes the next cell stand off, also when it is pushed aside.
    pub fn gap(&mut self) {
        self.text.push(' ');
        self.columns += 1;
    }

    pub fn end(self) {
        self.text.push('\n');
    }
}
