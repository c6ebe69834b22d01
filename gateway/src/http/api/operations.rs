//! What the API can be asked: the one table that is routed by, and that `openapi.json` is checked against.

use super::Problem;

/// What a call asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Document,
    Publish,
    Announce,
    ListRooms,
    ShowRoom,
    CreateRoom,
    DeleteRoom,
    History,
    Redact,
    AddMember,
    RemoveMember,
    Online,
    ShowUser,
    Disconnect,
    Erase,
    UserRooms,
    Notifications,
    Seen,
    Nodes,
    Stream,
    Tail,
    ListDead,
    ShowDead,
    RetryDead,
    DropDead,
}

/// Method, path and meaning; a segment in braces stands for a name.
pub(super) const OPERATIONS: &[(&str, &str, Operation)] = &[
    ("GET", "/api/openapi.json", Operation::Document),
    ("POST", "/api/events", Operation::Publish),
    ("POST", "/api/announce", Operation::Announce),
    ("GET", "/api/rooms", Operation::ListRooms),
    ("GET", "/api/rooms/{room}", Operation::ShowRoom),
    ("PUT", "/api/rooms/{room}", Operation::CreateRoom),
    ("DELETE", "/api/rooms/{room}", Operation::DeleteRoom),
    ("GET", "/api/rooms/{room}/history", Operation::History),
    ("DELETE", "/api/rooms/{room}/messages/{id}", Operation::Redact),
    ("PUT", "/api/rooms/{room}/members/{user}", Operation::AddMember),
    ("DELETE", "/api/rooms/{room}/members/{user}", Operation::RemoveMember),
    ("POST", "/api/users/online", Operation::Online),
    ("GET", "/api/users/{user}", Operation::ShowUser),
    ("DELETE", "/api/users/{user}", Operation::Erase),
    ("POST", "/api/users/{user}/disconnect", Operation::Disconnect),
    ("GET", "/api/users/{user}/rooms", Operation::UserRooms),
    ("GET", "/api/users/{user}/notifications", Operation::Notifications),
    ("POST", "/api/users/{user}/seen", Operation::Seen),
    ("GET", "/api/nodes", Operation::Nodes),
    ("GET", "/api/stream", Operation::Stream),
    ("GET", "/api/tail", Operation::Tail),
    ("GET", "/api/dead", Operation::ListDead),
    ("GET", "/api/dead/{dead_id}", Operation::ShowDead),
    ("DELETE", "/api/dead/{dead_id}", Operation::DropDead),
    ("POST", "/api/dead/{dead_id}/retry", Operation::RetryDead),
];

impl Operation {
    /// Method and path.
    pub(super) fn route(self) -> (&'static str, &'static str) {
        let found = OPERATIONS.iter().find(|(_, _, operation)| *operation == self);
        found.map_or(("", ""), |(method, path, _)| (method, path))
    }

    /// Whether a body is read.
    pub(super) fn takes_body(self) -> bool {
        matches!(self, Self::Publish | Self::Announce | Self::CreateRoom | Self::Online | Self::Disconnect | Self::Seen)
    }

    /// Whether the operators' page asks for it again and again.
    pub(super) fn is_polled(self) -> bool {
        matches!(self, Self::Nodes | Self::Stream | Self::ListDead | Self::ListRooms)
    }

    /// Finds what is asked, and the names in the path. `path` is what follows `/api/`, decoded. It is matched as it
    /// was sent: who takes a segment for none, or for a step up, means another path.
    pub(super) fn find<'a>(method: &str, path: &'a [String]) -> Result<(Self, Vec<&'a str>), Problem> {
        let no_such_path = || Problem::new(http::StatusCode::NOT_FOUND, "no such path");
        if path.iter().any(|segment| is_no_segment(segment)) {
            return Err(no_such_path());
        }
        // Whoever may GET may ask for the head of it; the server leaves out the body.
        let method = if method == "HEAD" { "GET" } else { method };
        let mut allowed = Vec::new();
        for (known, template, operation) in OPERATIONS {
            match names(template, path) {
                Some(names) if *known == method => return Ok((*operation, names)),
                Some(_) => allowed.push(*known),
                None => {}
            }
        }
        if allowed.is_empty() {
            return Err(no_such_path());
        }
        Err(Problem::method_not_allowed(&allowed))
    }
}

/// Whether others might read it as another path, once it is decoded.
fn is_no_segment(segment: &str) -> bool {
    segment.split('/').any(|part| matches!(part, "" | "." | ".."))
}

/// The names in a path, if it is of this form.
fn names<'a>(template: &str, path: &'a [String]) -> Option<Vec<&'a str>> {
    let template: Vec<&str> = template.split('/').skip(2).collect();
    if template.len() != path.len() {
        return None;
    }
    let mut names = Vec::new();
    for (wanted, given) in template.into_iter().zip(path) {
        if wanted.starts_with('{') {
            names.push(given.as_str());
        } else if wanted != given {
            return None;
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn find(method: &str, path: &str) -> Result<(Operation, Vec<String>), String> {
        let path: Vec<String> = path.split('/').map(str::to_owned).collect();
        match Operation::find(method, &path) {
            Ok((operation, names)) => Ok((operation, names.into_iter().map(str::to_owned).collect())),
            Err(problem) => Err(problem.answer().status().to_string()),
        }
    }

    #[test]
    fn paths_are_found_as_they_were_sent() {
        assert_eq!(find("GET", "rooms/lobby/history").unwrap(), (Operation::History, vec!["lobby".to_owned()]));
        assert_eq!(find("HEAD", "rooms").unwrap().0, Operation::ListRooms);
        for (method, path) in [
            ("GET", "rooms/"),
            ("GET", "rooms//history"),
            ("DELETE", "rooms/lobby/"),
            ("DELETE", "rooms/lobby/members/.."),
            ("DELETE", "rooms/./lobby"),
            ("DELETE", "rooms/../rooms/lobby"),
            ("GET", "/rooms"),
        ] {
            assert!(find(method, path).unwrap_err().starts_with("404"), "{method} {path}");
        }
        for segment in ["lobby/", "/", "../../metrics", "a/./b"] {
            let path = ["rooms".to_owned(), segment.to_owned()];
            assert_eq!(Operation::find("PUT", &path).unwrap_err().answer().status(), 404, "{segment}");
        }
        assert!(find("GET", "rooms/a/b").unwrap_err().starts_with("404"));
        assert!(find("GET", "").unwrap_err().starts_with("404"));
        assert!(find("DELETE", "rooms").unwrap_err().starts_with("405"));
    }

    /// Beside the API the document holds what else the internal listener answers.
    const OTHERS: [(&str, &str); 3] = [("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")];

    #[test]
    fn the_document_describes_exactly_what_is_routed() {
        let document: serde_json::Value = serde_json::from_str(super::super::OPENAPI).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut described = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap().iter().filter(|(name, _)| *name != "parameters") {
                described.insert((method.to_uppercase(), path.clone()));
                let Some((.., known)) = OPERATIONS.iter().find(|(m, p, _)| m.to_lowercase() == *method && p == path)
                else {
                    continue;
                };
                assert_eq!(operation.get("requestBody").is_some(), known.takes_body(), "{method} {path}");
                // Who may ask without a key is said there.
                let open = operation["security"].as_array().is_some_and(Vec::is_empty);
                assert_eq!(open, *known == Operation::Document, "{method} {path}");
            }
        }
        let routed = OPERATIONS.iter().map(|(method, path, _)| (*method, *path)).chain(OTHERS);
        let routed: BTreeSet<_> = routed.map(|(method, path)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(described, routed);
    }
}
