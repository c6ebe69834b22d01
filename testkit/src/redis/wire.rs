//! Just enough of Redis' protocol to ask one question a connection.

use std::{
    fmt::Write as _,
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

/// The longest an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks the server on this port, and signs in if there is a password. The items of an array come back one
/// a line, null comes back as nothing, and an error as text that starts with `-`.
pub(super) fn ask(port: u16, password: Option<&str>, command: &[&[u8]]) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    if let Some(password) = password {
        write_command(&mut request, &[b"AUTH", password.as_bytes()]);
    }
    write_command(&mut request, command);
    stream.write_all(&request)?;
    let mut from = BufReader::new(stream);
    let mut text = String::new();
    if password.is_some() {
        // A server that knows no password says so, and answers all the same.
        read_reply(&mut from, &mut text)?;
        text.clear();
    }
    read_reply(&mut from, &mut text)?;
    Ok(text)
}

/// [`ask`] for words of text.
pub(super) fn ask_text(port: u16, password: Option<&str>, command: &[&str]) -> io::Result<String> {
    let words: Vec<&[u8]> = command.iter().map(|word| word.as_bytes()).collect();
    ask(port, password, &words)
}

fn write_command(to: &mut Vec<u8>, command: &[&[u8]]) {
    to.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
    for word in command {
        to.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        to.extend_from_slice(word);
        to.extend_from_slice(b"\r\n");
    }
}

fn read_reply(from: &mut impl BufRead, text: &mut String) -> io::Result<()> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let line = line.trim_end();
    let (kind, rest) = line.split_at_checked(1).ok_or(io::ErrorKind::UnexpectedEof)?;
    match kind {
        "$" => {
            let Ok(len) = rest.parse::<usize>() else { return Ok(()) };
            let mut bytes = vec![0; len + 2];
            from.read_exact(&mut bytes)?;
            text.push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
        "*" => {
            for at in 0..rest.parse::<i64>().unwrap_or(0) {
                if at > 0 {
                    text.push('\n');
                }
                read_reply(from, text)?;
            }
        }
        "-" => {
            let _ = write!(text, "-{rest}");
        }
        _ => text.push_str(rest),
    }
    Ok(())
}
