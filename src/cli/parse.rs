//! How arguments are read, and the secrets that they only point at.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use zeroize::Zeroizing;

use super::Failure;
use crate::{
    config,
    model::{Labels, MAX_LABEL_BYTES, MAX_LABELS, Secret, Timestamp, Usage},
};

/// The longest secret that is read from a file, in bytes.
const MAX_SECRET: u64 = 16 * 1024;

/// `30d`, `5m`, `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a duration as 30s, 5m, 12h or 30d".to_owned())
}

/// `30d`, or `none` for no end.
pub(super) fn lifetime(text: &str) -> Result<Lifetime, String> {
    if text == "none" { Ok(Lifetime(None)) } else { duration(text).map(|lifetime| Lifetime(Some(lifetime))) }
}

/// A duration, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime(pub(super) Option<Duration>);

/// An RFC 3339 time, or a date, which means its first moment in UTC.
pub(super) fn time(text: &str) -> Result<Timestamp, String> {
    let is_date = text.len() == 10 && !text.contains('T');
    let whole = if is_date { format!("{text}T00:00:00Z") } else { text.to_owned() };
    whole.parse().map_err(|_| "write a time as 2026-01-31T12:00:00Z, or a date as 2026-01-31".to_owned())
}

/// `reuse` or `one-time`.
pub(super) fn usage(text: &str) -> Result<Usage, String> {
    match text {
        "reuse" => Ok(Usage::Reuse),
        "one-time" => Ok(Usage::OneTime),
        _ => Err("it is reuse or one-time".to_owned()),
    }
}

/// One `--label key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) key: String,
    pub(super) value: String,
}

impl FromStr for Label {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("write a label as key=value")?;
        if key.is_empty() {
            return Err("the label's key is empty; write it as key=value".to_owned());
        }
        if key.len() > MAX_LABEL_BYTES || value.len() > MAX_LABEL_BYTES {
            return Err(format!("a label's key and value hold at most {MAX_LABEL_BYTES} bytes each"));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
}

/// Labels as a map; the same key twice is a mistake, not a choice.
pub(super) fn labels(given: Vec<Label>) -> Result<Labels, Failure> {
    if given.len() > MAX_LABELS {
        return Err(Failure::new(super::Exit::Usage, format!("at most {MAX_LABELS} labels can be set")));
    }
    let mut labels = Labels::new();
    for Label { key, value } in given {
        if labels.contains_key(&key) {
            return Err(Failure::new(super::Exit::Usage, format!("the label {key:?} is given twice")));
        }
        labels.insert(key, value);
    }
    Ok(labels)
}

/// A file, or `-` for standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdin,
    File(PathBuf),
}

impl FromStr for Source {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Err("name a file, or - for standard input".to_owned()),
            "-" => Ok(Self::Stdin),
            path => Ok(Self::File(path.into())),
        }
    }
}

impl Source {
    /// The secret in it, without the line ends that editors leave behind it.
    pub(super) fn secret(&self) -> Result<Secret, Failure> {
        let (name, text) = match self {
            Self::Stdin => ("standard input".to_owned(), bounded_text(io::stdin().lock())),
            Self::File(path) => (path.display().to_string(), open(path).and_then(bounded_text)),
        };
        let text = text.map_err(|error| Failure::failed(format!("cannot read the secret from {name}: {error}")))?;
        // Some editors begin a file with a byte-order mark and end it with a line.
        let secret = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end_matches(['\r', '\n']);
        if secret.is_empty() {
            return Err(Failure::failed(format!("there is no secret in {name}: it is empty")));
        }
        if secret.contains(char::is_control) {
            return Err(Failure::failed(format!("{name} holds more than a secret: line breaks or control characters"))
                .with_hint("a secret is one line of text; put each into a file of its own"));
        }
        if secret.starts_with(char::is_whitespace) || secret.ends_with(char::is_whitespace) {
            return Err(Failure::failed(format!("the secret in {name} begins or ends with a space"))
                .with_hint("remove it: it would be taken as part of the secret"));
        }
        Ok(Secret::new(secret))
    }
}

/// Opens a file for reading; a folder is told as one, and what is not there as that.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no such file",
            io::ErrorKind::PermissionDenied => "this user may not read it",
            _ => return error,
        };
        io::Error::new(error.kind(), why)
    })?;
    if file.metadata()?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a folder; name a file"));
    }
    Ok(file)
}

fn bounded_text(reader: impl Read) -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(4096));
    reader.take(MAX_SECRET + 1).read_to_string(&mut text).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => io::Error::new(error.kind(), "it is not UTF-8 text"),
        _ => error,
    })?;
    if text.len() as u64 > MAX_SECRET {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {MAX_SECRET} bytes")));
    }
    Ok(text)
}

/// A configuration to write to or read from, where none was found.
pub(super) fn located(file: PathBuf) -> config::Located {
    config::Located { file }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_split_at_the_first_equals_sign() {
        let label: Label = "plan=a=b".parse().expect("a label");
        assert_eq!(label, Label { key: "plan".into(), value: "a=b".into() });
        assert_eq!("empty=".parse::<Label>().expect("a label").value, "");
        for bad in ["plan", "=x", &format!("k={}", "x".repeat(257)), &format!("{}=x", "k".repeat(257))] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_label_given_twice_is_a_mistake() {
        let label = |text: &str| text.parse::<Label>().expect("a label");
        assert_eq!(labels(vec![label("a=1"), label("b=2")]).expect("labels").len(), 2);
        assert_eq!(labels(vec![label("a=1"), label("a=2")]).expect_err("twice").exit(), super::super::Exit::Usage);
    }

    #[test]
    fn a_date_means_its_first_moment_in_utc() {
        assert_eq!(time("2026-01-31").expect("a time").to_string(), "2026-01-31T00:00:00Z");
        assert_eq!(time("2026-01-31T12:00:00+01:00").expect("a time").to_string(), "2026-01-31T11:00:00Z");
        for bad in ["yesterday", "2026-13-01", "31-01-2026"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_secret_loses_its_line_end_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let read = |bytes: &[u8]| {
            let path = folder.path().join("secret");
            std::fs::write(&path, bytes).expect("written");
            Source::File(path).secret()
        };
        assert_eq!(read(b"key with space\r\n").expect("a secret").expose(), "key with space");
        assert_eq!(read(b"\xef\xbb\xbfkey\n").expect("a secret").expose(), "key");
        for bad in [&b"\n"[..], b"hunter2\nhunter3\n", b"hunter2\0", b" hunter2", b"hunter2 \n", b"\thunter2"] {
            let error = read(bad).expect_err("no secret");
            assert!(!format!("{error} {error:?}").contains("hunter"), "{error}");
        }
        let error = read(b"hunter2\xff").expect_err("not text");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(read(&vec![b'x'; 17 * 1024]).is_err());
    }
}
