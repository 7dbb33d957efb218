use super::*;

fn places(folder: &Path) -> Places {
    Places {
        vault: folder.join("data/vault"),
        identity: folder.join("etc/identity.txt"),
        socket: folder.join("run/consentry.sock"),
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().expect("there").permissions().mode() & 0o777
}

fn run(folder: &Path) -> (Result<Config, Failure>, Report) {
    let mut report = Report::default();
    let result = make(&folder.join("config/consentry.toml"), || Ok(places(folder)), &mut report);
    (result, report)
}

#[test]
fn everything_is_made_with_its_mode_and_the_second_time_kept() {
    let folder = tempfile::tempdir().expect("a folder");
    let (result, report) = run(folder.path());
    result.expect("made");
    assert_eq!(report.made.len(), 4, "{report:?}");
    let places = places(folder.path());
    assert_eq!(mode(&folder.path().join("config/consentry.toml")), 0o644);
    assert_eq!(mode(&places.identity), 0o600);
    assert_eq!(mode(&places.vault), 0o700);
    assert_eq!(mode(places.socket.parent().expect("a folder")), 0o755);
    let identity = std::fs::read(&places.identity).expect("read");

    let (result, report) = run(folder.path());
    result.expect("nothing to do");
    assert_eq!((report.made.len(), report.kept.len()), (0, 3), "{report:?}");
    assert_eq!(std::fs::read(&places.identity).expect("read"), identity);
}

#[test]
fn a_configuration_that_is_there_is_never_written_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.toml");
    write_new(&file, "first").expect("written");
    assert_eq!(write_new(&file, "second").expect_err("there").kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read_to_string(&file).expect("read"), "first");
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "no temporary file is left");
}

#[test]
fn a_vault_whose_identity_is_gone_gets_no_other() {
    let folder = tempfile::tempdir().expect("a folder");
    run(folder.path()).0.expect("made");
    std::fs::remove_file(places(folder.path()).identity).expect("removed");
    let (result, report) = run(folder.path());
    assert!(result.expect_err("refused").to_string().contains("identity that opens it is not"));
    assert!(report.made.is_empty() && !places(folder.path()).identity.exists());
}
