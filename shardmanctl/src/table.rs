//! Tables of box-drawing characters, as `status` shows them. Pure but for [`colours`].

use std::io::IsTerminal as _;

/// How a row's first cell is to be seen on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// All is well.
    Good,
    /// To be looked at.
    Doubtful,
    /// To be repaired.
    Bad,
}

/// A row. Everything but the message is centred.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// Colour of the first cell.
    pub tone: Tone,
    /// The four cells: status, message, replication group, node.
    pub cells: [&'a str; 4],
}

const HEADER: [&str; 4] = ["STATUS", "MESSAGE", "REPLICATION GROUP", "NODE"];
/// Least widths of the cells with their padding.
const WIDTHS: [usize; 4] = [11, 41, 21, 21];
/// The cell that is wrapped, and left-aligned.
const MESSAGE: usize = 1;
/// A message longer than this widens its column by one, and is wrapped at the new width.
const NARROW: usize = 39;

/// True if stdout is a terminal and the user does not refuse colours by `NO_COLOR`.
pub fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Draws one table, with a line break at its end.
pub fn render(title: &str, lines: &[Line<'_>], colours: bool) -> String {
    let wrapped = lines.iter().any(|line| width(line.cells[MESSAGE]) > NARROW);
    let mut widths = WIDTHS;
    if wrapped {
        widths[MESSAGE] += 1;
    }
    for line in lines {
        for (column, cell) in line.cells.iter().enumerate().filter(|(column, _)| *column != MESSAGE) {
            widths[column] = widths[column].max(width(cell) + 2);
        }
    }
    let inner = widths.iter().sum::<usize>() + widths.len() - 1;
    let mut text = format!("┌{}┐\n│{}│\n", "─".repeat(inner), centred(title, inner));
    text += &rule(&widths, ['├', '┬', '┤']);
    text += &format!(
        "│{}│\n",
        HEADER.iter().zip(widths).map(|(cell, width)| centred(cell, width)).collect::<Vec<_>>().join("│")
    );
    for line in lines {
        text += &rule(&widths, ['├', '┼', '┤']);
        text += &row(line, &widths, colours);
    }
    text + &rule(&widths, ['└', '┴', '┘'])
}

fn rule(widths: &[usize; 4], [left, middle, right]: [char; 3]) -> String {
    let parts = widths.map(|width| "─".repeat(width)).join(&middle.to_string());
    format!("{left}{parts}{right}\n")
}

fn row(line: &Line<'_>, widths: &[usize; 4], colours: bool) -> String {
    let mut text = String::new();
    for (number, message) in wrap(line.cells[MESSAGE], widths[MESSAGE] - 2).iter().enumerate() {
        let cell = |column: usize| centred(if number == 0 { line.cells[column] } else { "" }, widths[column]);
        let status = if colours && number == 0 { painted(line.tone, &cell(0)) } else { cell(0) };
        let padding = " ".repeat(widths[MESSAGE] - 1 - width(message));
        text += &format!("│{status}│ {message}{padding}│{}│{}│\n", cell(2), cell(3));
    }
    text
}

fn painted(tone: Tone, text: &str) -> String {
    let colour = match tone {
        Tone::Good => 32,
        Tone::Doubtful => 33,
        Tone::Bad => 31,
    };
    format!("\x1b[{colour}m{text}\x1b[0m")
}

/// In the middle; an odd blank goes to the left.
fn centred(text: &str, room: usize) -> String {
    let blanks = room.saturating_sub(width(text));
    let right = blanks / 2;
    format!("{}{text}{}", " ".repeat(blanks - right), " ".repeat(right))
}

/// Cuts at blanks; a word that is longer than a line is cut where the line ends. At least one line.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        let used = lines.last().map_or(0, |line| width(line));
        if used > 0 && used + 1 + word.len() <= room {
            let line = lines.last_mut().expect("there always is a line");
            line.push(' ');
            line.extend(word);
            continue;
        }
        if used > 0 {
            lines.push(String::new());
        }
        while word.len() > room {
            let rest = word.split_off(room);
            lines.last_mut().expect("there always is a line").extend(word);
            lines.push(String::new());
            word = rest;
        }
        lines.last_mut().expect("there always is a line").extend(word);
    }
    lines
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn line<'a>(cells: [&'a str; 4]) -> Line<'a> {
        Line { tone: Tone::Good, cells }
    }

    #[test]
    fn a_table_without_a_wrapped_message_is_99_wide() {
        let text = render("== METADATA STATUS ==", &[line(["OK", "Metadata is OK", "", ""])], false);
        assert_eq!(
            text,
            "\
┌─────────────────────────────────────────────────────────────────────────────────────────────────┐
│                                      == METADATA STATUS ==                                      │
├───────────┬─────────────────────────────────────────┬─────────────────────┬─────────────────────┤
│   STATUS  │                 MESSAGE                 │  REPLICATION GROUP  │         NODE        │
├───────────┼─────────────────────────────────────────┼─────────────────────┼─────────────────────┤
│     OK    │ Metadata is OK                          │                     │                     │
└───────────┴─────────────────────────────────────────┴─────────────────────┴─────────────────────┘
"
        );
        assert!(text.lines().all(|line| width(line) == 99));
    }

    #[test]
    fn a_table_with_a_wrapped_message_is_100_wide() {
        let warning = "Store has only one member, consider deploying store cluster";
        let text =
            render("== STORE STATUS ==", &[line(["Warning", warning, "", "n1"]), line(["OK", "x", "", ""])], false);
        assert_eq!(
            text,
            "\
┌──────────────────────────────────────────────────────────────────────────────────────────────────┐
│                                        == STORE STATUS ==                                        │
├───────────┬──────────────────────────────────────────┬─────────────────────┬─────────────────────┤
│   STATUS  │                  MESSAGE                 │  REPLICATION GROUP  │         NODE        │
├───────────┼──────────────────────────────────────────┼─────────────────────┼─────────────────────┤
│  Warning  │ Store has only one member, consider      │                     │          n1         │
│           │ deploying store cluster                  │                     │                     │
├───────────┼──────────────────────────────────────────┼─────────────────────┼─────────────────────┤
│     OK    │ x                                        │                     │                     │
└───────────┴──────────────────────────────────────────┴─────────────────────┴─────────────────────┘
"
        );
    }

    #[test]
    fn long_names_widen_their_column_and_only_the_status_is_coloured() {
        let node = "a-very-long-node-name.example:5432";
        let text = render("t", &[line(["OK", "m", "", node])], true);
        assert!(text.contains(&format!("│ {node} │")));
        assert!(text.contains("│\x1b[32m     OK    \x1b[0m│"));
        assert_eq!(text.matches('\x1b').count(), 2);
    }

    #[test]
    fn words_longer_than_a_line_are_cut() {
        assert_eq!(wrap("ab cdefgh i", 4), ["ab", "cdef", "gh i"]);
        assert_eq!(wrap("", 4), [""]);
    }

    proptest! {
        #[test]
        fn lines_are_equally_wide(cells: [String; 4]) {
            let plain = |text: &String| text.chars().filter(|c| c.is_alphanumeric() || *c == ' ').collect::<String>();
            let cells = cells.each_ref().map(plain);
            let text = render("t", &[line(cells.each_ref().map(String::as_str))], false);
            let widths: Vec<usize> = text.lines().map(width).collect();
            prop_assert!(widths.iter().all(|width| *width == widths[0]), "{}", text);
        }
    }
}
