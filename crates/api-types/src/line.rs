//! Makes text from other programs safe to show to people.

/// Turns a text into one line of at most `most` bytes that is safe in a status, a log and a
/// terminal. Control characters and characters that change the direction of writing become spaces.
pub fn one_line(text: &str, most: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most));
    for c in text.trim().chars() {
        let unseen = c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let c = if unseen { ' ' } else { c };
        if line.len() + c.len_utf8() > most {
            break;
        }
        line.push(c);
    }
    line.truncate(line.trim_end().len());
    line
}

#[cfg(test)]
mod tests {
    use super::one_line;

    #[test]
    fn a_text_becomes_one_line_without_commands_for_a_terminal() {
        assert_eq!(one_line(" a\r\nb\u{1b}[31mc\u{202e}\n", 99), "a  b [31mc");
        assert_eq!(one_line("\u{e4}\u{e4}", 3), "\u{e4}");
        assert_eq!(one_line("\n", 3), "");
    }
}
