//! The report for people: aligned, at most 96 columns, in color where that is wanted.

use std::collections::HashSet;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use crate::output::escape::printable;

use super::Report;
use super::checks::{Check, State};
use super::namespaces::{Group, Namespaces};
use super::rungs::RungReport;

const COLUMNS: usize = 96;
/// Where values begin: after a mark of eight columns and a name of 25.
const INDENT: usize = 35;

const PLAIN: Style = Style::new();
const TITLE: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default();
const LIMITED: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

pub(super) fn page(report: &Report, has_color: bool) -> String {
    let mut page = Page { text: String::new(), has_color, said: HashSet::new() };
    let first = format!(
        "portwatch {} on {}, Linux {} ({})",
        report.portwatch,
        printable(&report.host),
        printable(&report.kernel),
        report.arch
    );
    page.line(TITLE, &first);
    match report.rung {
        Some(rung) => page.line(GOOD, &format!("`portwatch trace` works here, on rung `{rung}`")),
        None => page.line(BAD, "`portwatch trace` cannot work here, or not as this user"),
    }
    page.title("ways to observe, best first");
    report.rungs.iter().for_each(|rung| page.rung(rung, report.rung));
    for (section, title) in
        [("kernel", "kernel"), ("privileges", "privileges of this process"), ("surroundings", "surroundings")]
    {
        page.title(title);
        report.checks.iter().filter(|check| check.section == section).for_each(|check| page.check(check));
    }
    page.namespaces(&report.namespaces);
    page.text
}

struct Page {
    text: String,
    has_color: bool,
    /// What was said to do next: once is enough.
    said: HashSet<String>,
}

impl Page {
    fn styled(&mut self, style: Style, text: &str) {
        match self.has_color && style != PLAIN {
            true => write!(self.text, "{style}{text}{style:#}").expect("a string takes everything"),
            false => self.text.push_str(text),
        }
    }

    fn line(&mut self, style: Style, text: &str) {
        self.styled(style, text);
        self.text.push('\n');
    }

    fn title(&mut self, text: &str) {
        self.text.push('\n');
        self.line(TITLE, text);
    }

    /// A mark, a name, and a value that goes on below itself.
    fn row(&mut self, (style, mark): (Style, &str), name: &str, value: &str) {
        self.styled(style, &format!("{mark:<8}"));
        let name = format!("{name:<25}");
        self.text.push_str(&name);
        // A longer name pushes its value, but not into itself.
        let at = (8 + name.chars().count()).max(INDENT - 2) + 2;
        self.text.push_str(&" ".repeat(at - 8 - name.chars().count()));
        self.wrap(PLAIN, value, at);
    }

    /// More about the row above.
    fn below(&mut self, label: &str, value: &str) {
        self.text.push_str(&" ".repeat(INDENT));
        self.styled(DIM, label);
        self.text.push(' ');
        self.wrap(DIM, value, INDENT + label.chars().count() + 1);
    }

    fn next(&mut self, next: &str) {
        let value = if self.said.insert(next.to_owned()) { next } else { "as above" };
        self.below("next:", value);
    }

    /// Writes words from column `at` on and goes on at [`INDENT`]. Everything shown is made printable here.
    fn wrap(&mut self, style: Style, value: &str, at: usize) {
        let mut column = at;
        let mut line = String::new();
        for word in printable(value).split_whitespace() {
            let width = word.chars().count();
            if !line.is_empty() && column + 1 + width > COLUMNS {
                self.line(style, &std::mem::take(&mut line));
                self.text.push_str(&" ".repeat(INDENT));
                column = INDENT;
            }
            if !line.is_empty() {
                line.push(' ');
                column += 1;
            }
            line.push_str(word);
            column += width;
        }
        self.line(style, &line);
    }

    fn rung(&mut self, rung: &RungReport, used: Option<&str>) {
        let mark = match (rung.possible, &rung.unseen[..]) {
            (true, []) => (GOOD, "yes"),
            (true, _) => (LIMITED, "partly"),
            (false, _) => (BAD, "no"),
        };
        let mut name = rung.rung.to_owned();
        if used == Some(rung.rung) {
            name.push_str(" (used)");
        } else if !rung.traces {
            name.push_str(" (not by trace)");
        }
        self.row(mark, &name, rung.gives);
        if let Some(walk) = rung.stack_walk {
            let how =
                if walk == "loop" { "by bpf_loop, up to 128 frames" } else { "plainly, up to 64 frames" };
            self.below("stacks:", &format!("walked in the kernel {how}"));
        }
        if let Some(reason) = &rung.reason {
            self.below("why not:", reason);
        }
        for unseen in &rung.unseen {
            self.below("without:", &format!("{}: {} ({})", unseen.hook, unseen.effect, unseen.reason));
        }
        if let Some(next) = &rung.next {
            self.next(next);
        }
    }

    fn check(&mut self, check: &Check) {
        self.row(mark(check.state), check.name, &check.value);
        if let Some(unlocks) = check.unlocks {
            self.below("unlocks:", unlocks);
        }
        if let Some(next) = &check.next {
            self.next(next);
        }
    }

    fn namespaces(&mut self, namespaces: &Namespaces) {
        for group in &namespaces.groups {
            self.title(&format!("ports in {}", names(group)));
            for setting in &group.settings {
                let value = setting.value.as_deref().unwrap_or("-");
                self.row(mark(setting.state), setting.name, &format!("{value}: {}", setting.means));
            }
        }
        let mut hidden = Vec::new();
        if namespaces.unreadable > 0 {
            hidden.push(format!("{} that may not be looked into", namespaces.unreadable));
        }
        if namespaces.omitted > 0 {
            hidden.push(format!("{} beyond the first ones", namespaces.omitted));
        }
        if !hidden.is_empty() {
            self.text.push('\n');
            self.line(DIM, &format!("network namespaces not shown: {}", hidden.join(", ")));
        }
    }
}

fn names(group: &Group) -> String {
    let first = group.netns.first().copied().unwrap_or_default();
    let own = if group.is_own { ", portwatch's own" } else { "" };
    match group.netns.len() {
        0 | 1 => format!("network namespace {first}{own}"),
        n => format!("{n} network namespaces set alike, {first} and others{own}"),
    }
}

fn mark(state: State) -> (Style, &'static str) {
    match state {
        State::Ok => (GOOD, "ok"),
        State::Limited => (LIMITED, "limited"),
        State::Missing => (BAD, "missing"),
        State::Unknown => (DIM, "unknown"),
    }
}
