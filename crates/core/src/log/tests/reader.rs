//! Reading parts of a log.

use super::*;

#[test]
fn parts_of_a_log_are_read_against_its_checkpoint() {
    for n in [0, 1, 255, 256, 257, 600, 70_000] {
        let files = Files::of(&entries(n));
        let mut served = files.served();
        let mut reader = Reader::open(&mut served, &signer().1).unwrap();
        assert_eq!(reader.checkpoint().size, n as u64);
        let last = reader.bundles().saturating_sub(1);
        for number in [0, last / 2, last] {
            let first = number as usize * 256;
            let expected: Vec<_> = entries(n).into_iter().skip(first).take(256).collect();
            assert_eq!(reader.bundle(&mut served, number), Ok(expected), "{number} of {n}");
        }
        assert_eq!(reader.bundle(&mut served, last + 1), Ok(Vec::new()));
    }
}

#[test]
fn a_reader_tells_another_history_from_a_changed_tile() {
    let all = entries(700);
    let mut other = all.clone();
    other[5] = b"another".to_vec();
    let (now, forked) = (Files::of(&all), Files::of(&other));
    let follows = |files: &Files, before: &Files| {
        let mut served = files.served();
        let mut reader = Reader::open(&mut served, &signer().1).unwrap();
        reader.follows(&mut served, &before.checkpoint())
    };
    for size in [0, 1, 2, 255, 256, 257, 300, 512, 699, 700] {
        assert_eq!(follows(&now, &Files::of(&all[..size])), Ok(()), "{size}");
        let forked = follows(&now, &Files::of(&other[..size]));
        let expected = if size > 5 { Err(AuditError::Forked { size: size as u64 }) } else { Ok(()) };
        assert_eq!(forked, expected, "{size}");
    }
    let shorter = Files::of(&all[..300]);
    assert_eq!(follows(&shorter, &now), Err(AuditError::RolledBack { then: 700, now: 300 }));
    // Every tile that the proof is made of, changed: no second history, but a changed tile.
    for size in [256, 300, 512] {
        for path in now.0.keys().filter(|path| path.starts_with("tile/0") || path.starts_with("tile/1")) {
            let mut changed = now.clone();
            changed.0.get_mut(path).unwrap()[7] ^= 1;
            let found = follows(&changed, &Files::of(&all[..size]));
            assert!(matches!(found, Ok(()) | Err(AuditError::Unproven { .. })), "{path}: {found:?}");
        }
    }
    assert!(follows(&forked, &Files::of(&all[..6])).is_err());
}

proptest! {
    /// What a reader gives is what the log has: whichever byte of whichever file was changed.
    #[test]
    fn a_reader_gives_nothing_that_was_changed(
        n in 1_usize..1400,
        number in any::<prop::sample::Index>(),
        file in any::<prop::sample::Index>(),
        place in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let all = entries(n);
        let mut files = Files::of(&all);
        let paths: Vec<String> = files.0.keys().cloned().collect();
        let path = &paths[file.index(paths.len())];
        let bytes = files.0.get_mut(path).unwrap();
        let place = place.index(bytes.len());
        bytes[place] ^= 1 << bit;
        let mut served = files.served();
        match Reader::open(&mut served, &signer().1) {
            Err(error) => prop_assert!(path == "checkpoint" && matches!(error, AuditError::Checkpoint(_))),
            Ok(mut reader) => {
                let number = number.index(reader.bundles() as usize);
                let own = [format!("tile/0/{number:03}"), format!("tile/entries/{number:03}")];
                match reader.bundle(&mut served, number as u64) {
                    Ok(given) => {
                        prop_assert!(given.iter().eq(all.iter().skip(number * 256).take(256)));
                        prop_assert!(!own.iter().any(|own| path.starts_with(own.as_str())), "{path}");
                    }
                    Err(AuditError::Entry { .. } | AuditError::Unproven { .. } | AuditError::Bundle { .. }) => {}
                    Err(error) => prop_assert!(false, "{path}: {error}"),
                }
            }
        }
    }
}
