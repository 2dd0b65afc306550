//! Questions to the person at the terminal.

use super::ChangeError;
use std::io::{BufRead, Write};

/// Asks until the answer is a line `yes` or `no`.
///
/// # Errors
/// The input ended without an answer.
pub fn confirm(question: &str, input: &mut impl BufRead, output: &mut impl Write) -> Result<bool, ChangeError> {
    let unanswered = || ChangeError::Refused("nobody answered the question; give --yes to go on without it".into());
    loop {
        // A question that can't be shown is answered or not, all the same.
        let _ = write!(output, "{question} (yes/no) ").and_then(|()| output.flush());
        let mut line = String::new();
        if input.read_line(&mut line).map_err(|_| unanswered())? == 0 {
            return Err(unanswered());
        }
        match line.trim_end_matches(['\r', '\n']) {
            "yes" => return Ok(true),
            "no" => return Ok(false),
            _ => {}
        }
    }
}

/// Asks on the terminal. The question goes to stderr, since stdout is for data.
///
/// # Errors
/// As [`confirm`].
pub fn confirm_on_terminal(question: &str) -> Result<bool, ChangeError> {
    confirm(question, &mut std::io::stdin().lock(), &mut std::io::stderr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &[u8]) -> (Option<bool>, usize) {
        let mut output = Vec::new();
        let answer = confirm("sure?", &mut &text[..], &mut output).ok();
        (answer, String::from_utf8(output).unwrap().matches("sure?").count())
    }

    #[test]
    fn only_whole_words_count() {
        assert_eq!(answer(b"yes\n"), (Some(true), 1));
        assert_eq!(answer(b"no"), (Some(false), 1));
        assert_eq!(answer(b"y\nYES\n yes\n\nyes\r\n"), (Some(true), 5));
        assert_eq!(answer(b""), (None, 1));
        assert_eq!(answer(b"maybe"), (None, 2));
        assert_eq!(answer(b"\xff\xfe\n"), (None, 1));
    }
}
