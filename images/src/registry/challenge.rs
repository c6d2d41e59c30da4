//! `WWW-Authenticate` (RFC 9110 §11.6.1): the challenges a registry can make.

/// One way to log in that the server offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Distribution's token authentication: get a token from `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
    /// User name and password with each request.
    Basic,
}

/// Longest header that is looked at.
const MAX_HEADER: usize = 8 << 10;

/// All challenges in one header value that Hull can answer, in order.
pub(super) fn parse(header: &str) -> Vec<Challenge> {
    let mut found = Vec::new();
    let mut rest = header.get(..MAX_HEADER).unwrap_or(header);
    while let Some((scheme, after)) = token(rest) {
        let (parameters, after) = parameters(after);
        let get = |name: &str| {
            parameters.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.clone())
        };
        if scheme.eq_ignore_ascii_case("bearer") {
            if let Some(realm) = get("realm") {
                found.push(Challenge::Bearer { realm, service: get("service"), scope: get("scope") });
            }
        } else if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        }
        rest = after;
    }
    found
}

/// The next token, skipping separators in front of it.
fn token(text: &str) -> Option<(&str, &str)> {
    let text = text.trim_start_matches([' ', '\t', ',']);
    let end = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)))
        .unwrap_or(text.len());
    if end == 0 { None } else { Some(text.split_at(end)) }
}

/// `name=value` pairs up to the next scheme.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut found = Vec::new();
    while let Some((name, after)) = token(rest) {
        let Some(value) = after.trim_start().strip_prefix('=') else { break };
        let value = value.trim_start();
        let (value, after) = match value.strip_prefix('"') {
            Some(quoted) => match unquote(quoted) {
                Some(pair) => pair,
                None => return (found, ""),
            },
            None => {
                let end = value.find([',', ' ']).unwrap_or(value.len());
                (value[..end].to_owned(), &value[end..])
            }
        };
        found.push((name.to_owned(), value));
        rest = after;
    }
    (found, rest)
}

/// Reads up to the closing quote.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let own = |s: Option<&str>| s.map(str::to_owned);
        Challenge::Bearer { realm: realm.to_owned(), service: own(service), scope: own(scope) }
    }

    #[test]
    fn what_registries_really_send() {
        assert_eq!(
            parse(
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull""#
            ),
            [bearer(
                "https://auth.docker.io/token",
                Some("registry.docker.io"),
                Some("repository:library/debian:pull")
            )]
        );
        assert_eq!(parse(r#"Basic realm="Registry Realm""#), [Challenge::Basic]);
        assert_eq!(
            parse(r#"BASIC realm="a, b" , bearer  realm = x,service=y"#),
            [Challenge::Basic, bearer("x", Some("y"), None)]
        );
        assert_eq!(parse(r#"Negotiate, Bearer realm="a\"b""#), [bearer("a\"b", None, None)]);
        assert_eq!(parse(r#"Bearer service="no realm""#), []);
        assert_eq!(parse(r#"Bearer realm="never closed"#), []);
    }

    proptest! {
        #[test]
        fn any_header_ends(header in "\\PC{0,200}") {
            parse(&header);
        }

        #[test]
        fn anything_quoted_comes_back(realm in "[ -~]{0,40}") {
            let escaped = realm.replace('\\', "\\\\").replace('"', "\\\"");
            prop_assert_eq!(parse(&format!("Bearer realm=\"{escaped}\"")), [bearer(&realm, None, None)]);
        }
    }
}
