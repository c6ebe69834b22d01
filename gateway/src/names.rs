//! Names of rooms and users, and the layer groups that belong to them (`docs/protocol.md`).

use channel_layer::{GroupName, NameError};
use sha2::{Digest, Sha256};

pub use persistence::is_valid_name;

/// Says the rule to who gave something else for a name.
pub fn check(name: &str) -> Result<(), &'static str> {
    let rule = "a name has 1 to 150 characters, no / and no control characters, and is neither . nor ..";
    if is_valid_name(name) { Ok(()) } else { Err(rule) }
}

/// How the names begin of those whom nobody knows by name; no user's may.
pub(crate) const ANONYMOUS: &str = "anon.";

/// Whether a user can have this name.
pub fn is_user_name(name: &str) -> bool {
    is_valid_name(name) && !name.starts_with(ANONYMOUS)
}

/// Says the rule to who gave something else for a user's name.
pub fn check_user(name: &str) -> Result<(), &'static str> {
    check(name)?;
    if is_user_name(name) { Ok(()) } else { Err("names that begin with anon. are those of visitors without a name") }
}

/// With what the names of rooms' groups and hashed names begin. No user's group may.
const RESERVED: [&str; 3] = ["chat_", "u.", "r."];

/// Characters that a template leaves for the name, at least: with fewer, nearly all names would be hashed.
const LEAST: usize = 30;

/// Whether users' groups by this template are apart from rooms' and from each other.
pub(crate) fn check_template(template: &str, raw: bool) -> Result<(), String> {
    let Some((before, after)) = template.split_once("{username}").filter(|(_, after)| !after.contains("{username}"))
    else {
        return Err("must contain {username} once".to_owned());
    };
    let fits = |text: &str| raw || text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    if !fits(before) || !fits(after) {
        return Err(
            "must have letters, digits, -, _ and . beside {username}: no other group is heard by Channels".into()
        );
    }
    if before.len() + after.len() + LEAST > 99 {
        return Err("is too long: a group's name has at most 99 characters".to_owned());
    }
    // Some username makes of it what begins like that; with {username} in front only one that ends within the word, as
    // usernames that begin with all of it are hashed.
    let meets = |word: &&str| match before {
        "" => (1..word.len())
            .any(|cut| !after.is_empty() && (after.starts_with(&word[cut..]) || word[cut..].starts_with(after))),
        before => before.starts_with(*word) || word.starts_with(before),
    };
    match RESERVED.iter().find(|word| meets(word)) {
        Some(word) => Err(format!(
            "{template} could make a user's group out of a room's or of another user's, as names that begin with {word} \
             are theirs: what is sent to one would reach the other. Take another beginning, such as user_{{username}}"
        )),
        None => Ok(()),
    }
}

/// Makes group names of users and rooms, by the site's settings.
#[derive(Debug, Clone)]
pub struct GroupNames {
    user_template: String,
    raw: bool,
}

impl GroupNames {
    /// `user_template` contains `{username}` once. With `raw` any UTF-8 name stands as it is
    /// (pub/sub layer only), for sites that already send to such names.
    pub fn new(user_template: &str, raw: bool) -> Self {
        Self { user_template: user_template.to_owned(), raw }
    }

    /// The group of all sockets of a user.
    pub fn user(&self, username: &str) -> Result<GroupName, NameError> {
        // With another template than the default the prefix keeps a name from meaning a room.
        let reserved =
            self.user_template.starts_with("{username}") && RESERVED.iter().any(|prefix| username.starts_with(prefix));
        let name = self.user_template.replace("{username}", username);
        if reserved {
            return GroupName::parse(&hashed("u.", username));
        }
        self.plain(&name).or_else(|_| GroupName::parse(&hashed("u.", username)))
    }

    /// The group of all sockets of a room's members.
    pub fn room(&self, room: &str) -> Result<GroupName, NameError> {
        self.plain(&format!("chat_{room}")).or_else(|_| GroupName::parse(&hashed("r.", room)))
    }

    /// The room of a group, where the name shows it.
    pub(crate) fn room_of<'a>(&self, group: &'a GroupName) -> Option<&'a str> {
        group.as_str().strip_prefix("chat_").filter(|room| is_valid_name(room))
    }

    /// Any group of the site's, if the layer takes its name.
    pub(crate) fn plain(&self, name: &str) -> Result<GroupName, NameError> {
        if self.raw { GroupName::parse_any(name) } else { GroupName::parse(name) }
    }
}

fn hashed(prefix: &str, name: &str) -> String {
    let digest = Sha256::digest(name.as_bytes());
    let hex: String = digest.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
    format!("{prefix}{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names() -> GroupNames {
        GroupNames::new("{username}", false)
    }

    #[test]
    fn plain_names_stand_as_they_are_and_others_are_hashed() {
        let names = names();
        assert_eq!(names.user("alice").unwrap().as_str(), "alice");
        assert_eq!(names.room("lobby").unwrap().as_str(), "chat_lobby");
        // `printf %s 'a@b.c' | sha256sum | cut -c1-40`
        assert_eq!(names.user("a@b.c").unwrap().as_str(), "u.d648b243a3e817eaa3309e00e183483f2867baad");
        assert!(names.user("chat_lobby").unwrap().as_str().starts_with("u."));
        assert!(names.user("r.x").unwrap().as_str().starts_with("u."));
        assert!(names.room(&"x".repeat(95)).unwrap().as_str().starts_with("r."));
        assert_eq!(names.room(&"x".repeat(94)).unwrap().as_str().len(), 99);
        let room_of = |group| names.room_of(&GroupName::parse(group).unwrap()).map(str::to_owned);
        assert_eq!(room_of("chat_lobby"), Some("lobby".to_owned()));
        assert_eq!([room_of("alice"), room_of("r.d648b243a3"), room_of("chat_")], [None, None, None]);
    }

    #[test]
    fn a_template_that_could_meet_other_groups_is_refused() {
        for good in
            ["{username}", "user_{username}", "site-1.{username}", "{username}-user", "ux{username}", "cat_{username}"]
        {
            assert_eq!(check_template(good, false), Ok(()), "{good}");
        }
        // The last of each kind is for a username that only completes the word.
        for bad in [
            "chat_{username}",
            "chat_user_{username}",
            "chat{username}",
            "c{username}",
            "u.{username}",
            "u{username}",
            "r{username}",
            "r.x.{username}",
            "{username}_",
            "{username}_user",
            "{username}t_x",
            "{username}.site",
            "{username}{username}",
            "user",
            "",
            "user {username}",
        ] {
            assert!(check_template(bad, false).is_err(), "{bad}");
        }
        assert!(check_template(&format!("{}{{username}}", "x".repeat(80)), false).is_err());
        assert_eq!(check_template("user {username}", true), Ok(()));
    }

    proptest! {
        /// Whatever a template lets pass, no two users and no user and room share a group.
        #[test]
        fn groups_of_an_accepted_template_are_apart(
            before in "[a-z._-]{0,3}", after in "[a-z._-]{0,3}",
            user in "[a-z._-]{1,8}", other in "[a-z._-]{1,8}", room in "[a-z._-]{1,8}",
        ) {
            let template = format!("{before}{{username}}{after}");
            prop_assume!(check_template(&template, false).is_ok());
            let names = GroupNames::new(&template, false);
            let group = names.user(&user).unwrap();
            prop_assert_ne!(&group, &names.room(&room).unwrap());
            prop_assert!(!group.as_str().starts_with("chat_") && !group.as_str().starts_with("r."));
            if user != other {
                prop_assert_ne!(group, names.user(&other).unwrap());
            }
        }
    }

    #[test]
    fn a_template_and_raw_names() {
        assert_eq!(GroupNames::new("user_{username}", false).user("chat_x").unwrap().as_str(), "user_chat_x");
        assert_eq!(GroupNames::new("{username}", true).user("a@b.c").unwrap().as_str(), "a@b.c");
    }

    proptest! {
        #[test]
        fn a_users_group_is_never_a_rooms(user in "\\PC{1,150}", room in "\\PC{1,150}") {
            let (user, room) = (names().user(&user).unwrap(), names().room(&room).unwrap());
            prop_assert_ne!(user, room);
        }
    }
}
