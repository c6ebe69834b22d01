//! The API's answers as people read them.

use serde_json::Value;

/// Something that passed on one line: when and what, then its fields by name, the texts last.
pub(super) fn line(event: &Value) -> String {
    const TEXTS: [&str; 3] = ["message", "text", "data"];
    let field = |name: &str| event.get(name).map(cell);
    let mut words: Vec<String> = [field("at"), field("what")].into_iter().flatten().collect();
    let fields = event.as_object().into_iter().flatten();
    let (texts, others): (Vec<_>, Vec<_>) = fields
        .filter(|(name, _)| !["at", "what"].contains(&name.as_str()))
        .partition(|(name, _)| TEXTS.contains(&name.as_str()));
    words.extend(others.into_iter().chain(texts).map(|(name, value)| format!("{name}={}", cell(value))));
    words.join("  ")
}

/// An answer as people read it: a list as a table, anything else a line for each of its fields.
pub(super) fn table(answer: &Value) -> String {
    let Some(fields) = answer.as_object() else { return cell(answer) };
    let lists = fields.values().filter_map(Value::as_array).filter(|list| list.iter().all(Value::is_object));
    let (list, is_list) = match lists.collect::<Vec<_>>()[..] {
        [list] if fields.values().all(|value| value.is_array() || value.is_boolean()) => (list.clone(), true),
        _ => (Vec::new(), false),
    };
    let rows: Vec<Vec<(String, String)>> = match is_list {
        true => list.iter().map(cells).collect(),
        false => return aligned(cells(answer).into_iter().map(|(name, value)| vec![name, value]).collect()),
    };
    if rows.is_empty() {
        return "none".to_owned();
    }
    let mut columns: Vec<&str> = Vec::new();
    for (name, _) in rows.iter().flatten() {
        if !columns.contains(&name.as_str()) {
            columns.push(name);
        }
    }
    let head = columns.iter().map(|name| name.to_uppercase()).collect();
    let body = rows.iter().map(|row| {
        let of = |column: &&str| row.iter().find(|(name, _)| name == column).map_or("-", |(_, value)| value).to_owned();
        columns.iter().map(of).collect()
    });
    aligned(std::iter::once(head).chain(body).collect())
}

/// The fields of an object, with those of the objects in it.
fn cells(value: &Value) -> Vec<(String, String)> {
    let fields = value.as_object().into_iter().flatten();
    fields
        .flat_map(|(name, value)| match value {
            Value::Object(_) => cells(value),
            value => vec![(name.clone(), cell(value))],
        })
        .collect()
}

/// A value on one line; what cannot be seen is escaped.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.escape_debug().to_string().replace("\\\"", "\"").replace("\\'", "'"),
        Value::Array(list) if list.is_empty() => "-".to_owned(),
        Value::Array(list) => list.iter().map(cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

fn aligned(rows: Vec<Vec<String>>) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn people_read_tables() {
        let rooms = json!({"rooms": [
            {"name": "lobby", "display_name": "The \u{202e}Lobby", "seq": 7}, {"name": "a", "display_name": "a", "seq": 10},
        ]});
        let lines = ["DISPLAY_NAME       NAME   SEQ", "The \\u{202e}Lobby  lobby  7", "a                  a      10"];
        assert_eq!(table(&rooms), lines.join("\n"));
        let room = json!({"name": "lobby", "members": ["alice", "bob"], "online": [], "seq": 7});
        assert_eq!(table(&room), "members  alice, bob\nname     lobby\nonline   -\nseq      7");
        let dead =
            json!({"dead": [{"dead_id": "1-0", "fields": {"id": "42", "reason": "no_room"}}], "has_more": false});
        assert_eq!(table(&dead), "DEAD_ID  ID  REASON\n1-0      42  no_room");
        assert_eq!(table(&json!({"dead": [], "has_more": false})), "none");
    }

    #[test]
    fn what_passes_is_a_line() {
        let event = json!({"at": "2026-01-02T03:04:05.000006Z", "what": "chat_message", "message": "a\nb", "room": "lobby", "sockets": 2});
        assert_eq!(line(&event), "2026-01-02T03:04:05.000006Z  chat_message  room=lobby  sockets=2  message=a\\nb");
    }
}
