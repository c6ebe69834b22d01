//! Every case that Django has judged, judged again.

use http::HeaderMap;
use secrecy::SecretString;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::datetime;

use super::*;
use crate::scope::parse_cookies;

pub(super) fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/django-session-vectors.json")).unwrap()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap()
}

fn rules(settings: &Value) -> Rules {
    let list = |field: &str| settings[field].as_array().unwrap().iter().map(|entry| entry.as_str().unwrap().to_owned());
    let keys: Vec<SecretString> = [text(settings, "secret_key").to_owned()]
        .into_iter()
        .chain(list("secret_key_fallbacks"))
        .map(Into::into)
        .collect();
    let engine = text(settings, "session_engine");
    let salt = if engine.ends_with("signed_cookies") { engine } else { text(settings, "session_salt") };
    Rules {
        keys: RwLock::new(Keys::new(&keys, salt)),
        cookie_name: text(settings, "session_cookie_name").to_owned(),
        cookie_age: settings["session_cookie_age"].as_i64().unwrap(),
        backends: list("authentication_backends").collect(),
        zone: TimeZone::UTC,
        asks: false,
    }
}

fn unix(date: &Value) -> i64 {
    let date = OffsetDateTime::parse(date.as_str().unwrap(), &Rfc3339).unwrap();
    i64::try_from(date.unix_timestamp_nanos() / 1000).unwrap()
}

/// As `Django::judge`, with the rows of the case. Gives id and name, or why not.
fn judge(case: &Value, rules: &Rules, rows: &Value) -> Result<(String, String), &'static str> {
    let mut headers = HeaderMap::new();
    headers.insert("cookie", http::HeaderValue::from_bytes(text(case, "cookie_header").as_bytes()).unwrap());
    let cookies = parse_cookies(&headers);
    let now = case["now"].as_i64().unwrap() * 1_000_000;
    let cookie = scope::cookie(&cookies, &rules.cookie_name).filter(|cookie| !cookie.is_empty()).ok_or("no_cookie")?;
    let claim = if text(&case["settings"], "session_engine").ends_with("signed_cookies") {
        rules.open_cookie(cookie, now)?.map(|(claim, _)| claim)
    } else {
        if !is_key(cookie) {
            return Err("session_key");
        }
        let rows = rows["django_session"].as_array().unwrap();
        let row = rows.iter().find(|row| text(row, "session_key") == cookie).ok_or("session_unknown")?;
        let data = Some(text(row, "session_data").to_owned());
        rules.open_row(&SiteSession { data, expires: SiteMoment::Unix(unix(&row["expire_date"])) }, now)?.claim
    };
    let claim = claim.ok_or("nobody")?;
    let users: Vec<SiteUser> = rows["user"].as_array().unwrap().iter().map(user).collect();
    let person = rules.admit(claim.shown(), users.iter().find(|user| *user.id == *claim.user_id))?;
    Ok((person.id.to_string(), person.username.to_string()))
}

fn user(row: &Value) -> SiteUser {
    let id = text(row, "id");
    SiteUser {
        // As `persistence` gives it.
        id: uuid::Uuid::parse_str(id).map_or(id.to_owned(), |uuid| uuid.to_string()),
        name: text(row, "username").to_owned(),
        password: text(row, "password").to_owned(),
        active: row["is_active"].as_bool().unwrap(),
    }
}

#[test]
fn every_verdict_is_djangos() {
    let vectors = vectors();
    let cases = vectors["sessions"].as_array().unwrap();
    assert_eq!(cases.len(), 50);
    let mut reasons = std::collections::BTreeSet::new();
    for case in cases {
        let verdict = judge(case, &rules(&case["settings"]), &case["rows"]);
        match text(&case["expect"], "outcome") {
            "user" => {
                let expected = (text(&case["expect"], "user_id"), text(&case["expect"], "username"));
                let found = verdict.as_ref().map(|(id, name)| (id.as_str(), name.as_str()));
                assert_eq!(found, Ok(expected), "{}", case["name"]);
            }
            _ => drop(reasons.insert(verdict.expect_err(text(case, "name")))),
        }
    }
    let known = [
        "no_cookie",
        "nobody",
        "session_backend",
        "session_expired",
        "session_key",
        "session_no_hash",
        "session_password",
        "session_signature",
        "session_unknown",
        "user_inactive",
        "user_unknown",
    ];
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), known);
}

/// The other direction: what lets in is each thing that Django looks at, so without any one of it nobody is let in.
#[test]
fn nobody_is_let_in_once_anything_is_changed() {
    let vectors = vectors();
    let good = vectors["sessions"].as_array().unwrap().iter().filter(|case| case["expect"]["outcome"] == "user");
    let mut count = 0;
    for case in good {
        count += 1;
        let (settings, rows) = (&case["settings"], &case["rows"]);
        let refused = |settings: &Value, rows: &Value, why: &str| {
            assert!(judge(case, &rules(settings), rows).is_err(), "{}: {why}", case["name"]);
        };
        let with = |value: &Value, change: &dyn Fn(&mut Value)| {
            let mut value = value.clone();
            change(&mut value);
            value
        };
        let key = with(settings, &|settings| {
            settings["secret_key"] = "another key".into();
            settings["secret_key_fallbacks"] = serde_json::json!([]);
        });
        refused(&key, rows, "key");
        refused(&with(settings, &|settings| settings["session_cookie_name"] = "other".into()), rows, "cookie");
        refused(
            &with(settings, &|settings| settings["authentication_backends"] = serde_json::json!(["x"])),
            rows,
            "backend",
        );
        let each = |change: &dyn Fn(&mut Value)| {
            with(rows, &|rows| rows["user"].as_array_mut().unwrap().iter_mut().for_each(change))
        };
        refused(settings, &each(&|user| user["password"] = "pbkdf2_sha256$1$x$y".into()), "password");
        if text(case, "name") != "db_inactive_allowed" {
            refused(settings, &each(&|user| user["is_active"] = false.into()), "active");
        }
        refused(settings, &with(rows, &|rows| rows["user"] = serde_json::json!([])), "user");
        if text(settings, "session_engine").ends_with("signed_cookies") {
            refused(&with(settings, &|settings| settings["session_cookie_age"] = (-1).into()), rows, "age");
        } else {
            refused(&with(settings, &|settings| settings["session_salt"] = "other".into()), rows, "salt");
            refused(settings, &with(rows, &|rows| rows["django_session"] = serde_json::json!([])), "row");
            let late = |row: &mut Value| row["expire_date"] = "2025-12-31T23:59:59.999999Z".into();
            let all = |rows: &mut Value| rows["django_session"].as_array_mut().unwrap().iter_mut().for_each(late);
            refused(settings, &with(rows, &all), "end");
        }
    }
    assert!(count >= 15, "{count}");
}

#[test]
fn sessions_of_caches_are_read() {
    use base64::Engine;
    let vectors = vectors();
    let cases = vectors["redis_cache"].as_array().unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let value = base64::engine::general_purpose::STANDARD.decode(text(case, "value_base64")).unwrap();
        let fields = Fields::of_cached(&value).unwrap();
        let field =
            |name: &str| case["session"][name].as_str().map_or(Field::None, |text| Field::Text(text.to_owned()));
        assert_eq!(fields.user_id, field("_auth_user_id"), "{}", case["name"]);
        assert_eq!(fields.backend, field("_auth_user_backend"));
        assert_eq!(fields.hash, field("_auth_user_hash"));
        for end in 0..value.len() {
            assert!(Fields::of_cached(&value[..end]).is_err());
        }
    }
}

#[test]
fn an_end_without_a_zone_is_the_sites() {
    let in_zone = |zone: &str| Rules {
        keys: RwLock::new(Keys::new(&[], "")),
        cookie_name: String::new(),
        cookie_age: 0,
        backends: Vec::new(),
        zone: TimeZone::get(zone).unwrap(),
        asks: false,
    };
    let local = SiteMoment::Local;
    let unix = |date: OffsetDateTime| date.unix_timestamp();
    let ends = |zone: &str, date, now: OffsetDateTime| in_zone(zone).ends(local(date), unix(now) * 1_000_000);
    let (summer, winter) = (datetime!(2026-07-01 12:00), datetime!(2026-12-01 12:00));
    assert_eq!(ends("UTC", summer, datetime!(2026-07-01 11:59:59 UTC)), Some(unix(datetime!(2026-07-01 12:00 UTC))));
    assert_eq!(ends("UTC", summer, datetime!(2026-07-01 12:00 UTC)), None);
    assert_eq!(
        ends("Europe/Berlin", summer, datetime!(2026-07-01 09:59:59 UTC)),
        Some(unix(datetime!(2026-07-01 10:00 UTC)))
    );
    assert_eq!(ends("Europe/Berlin", summer, datetime!(2026-07-01 10:00 UTC)), None);
    assert_eq!(
        ends("Europe/Berlin", winter, datetime!(2026-12-01 10:59:59 UTC)),
        Some(unix(datetime!(2026-12-01 11:00 UTC)))
    );
    assert_eq!(
        ends("America/Los_Angeles", winter, datetime!(2026-12-01 11:00 UTC)),
        Some(unix(datetime!(2026-12-01 20:00 UTC)))
    );
    // An hour that does not exist, and one that comes twice.
    let (gap, twice) = (datetime!(2026-03-29 02:30), datetime!(2026-10-25 02:30));
    assert_eq!(
        ends("Europe/Berlin", gap, datetime!(2026-03-28 00:00 UTC)),
        Some(unix(datetime!(2026-03-29 01:30 UTC)))
    );
    assert_eq!(
        ends("Europe/Berlin", twice, datetime!(2026-10-24 00:00 UTC)),
        Some(unix(datetime!(2026-10-25 00:30 UTC)))
    );
    assert_eq!(in_zone("UTC").ends(SiteMoment::Unix(1_500_000), 1_499_999), Some(2));
    assert_eq!(in_zone("UTC").ends(SiteMoment::Unix(1_500_000), 1_500_000), None);
}

#[test]
fn what_is_kept_of_a_session_is_small() {
    assert!(size_of::<SiteProof>() + 32 <= 64, "{}", size_of::<SiteProof>());
    // With what it is in, and a number for an id: less than 0.1 KiB.
    assert!(size_of::<SignedCookie>() + 40 + 8 <= 96, "{}", size_of::<SignedCookie>());
}
