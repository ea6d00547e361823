use super::*;

#[test]
fn a_key_has_1_to_512_bytes() {
    assert_eq!(Key::new("").unwrap_err().kind(), ErrorKind::InvalidKey);
    assert!(Key::new([7; 512]).is_ok());
    let error = Key::new(vec![7; 513]).unwrap_err();
    assert_eq!(error.to_string(), "key is 513 bytes long, the limit is 512");
}

#[test]
fn boundaries_of_parts_count_and_the_first_byte_marks_them() {
    let key = Key::from_parts(["ab", "c"]).unwrap();
    assert_eq!(key.as_bytes(), b"\xffkey\0\x02ab\0\x01c");
    assert_ne!(key, Key::from_parts(["a", "bc"]).unwrap());
    assert_ne!(Key::join([&b""[..]]).unwrap(), Key::join([&b""[..], b""]).unwrap());
    assert_eq!(Key::from_parts([""; 0]).unwrap_err().kind(), ErrorKind::InvalidKey);
    assert!(Key::from_parts([[1; 506]]).is_ok());
    assert!(Key::from_parts([[1; 507]]).is_err());
    assert!(Key::from_parts([vec![1; 70_000]]).is_err());
    assert!(Key::from_parts(std::iter::repeat("endless")).is_err());
}

#[test]
fn parts_are_returned_and_within_accepts_only_keys_of_its_scope() {
    let key = Key::join([&b"ab"[..], b"", b"c"]).unwrap();
    assert_eq!(key.parts(), [&b"ab"[..], b"", b"c"]);
    assert_eq!(Key::new("abc").unwrap().parts(), [b"abc"]);
    let scope = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
    assert_eq!(key.within(&scope(&["ab", ""])), Some(&b"c"[..]));
    assert_eq!(key.within(&[]), Some(key.as_bytes()));
    for other in [&["ab"][..], &["ab", "", "c"], &["a", ""], &["", "ab"]] {
        assert_eq!(key.within(&scope(other)), None, "{other:?}");
    }
    assert_eq!(Key::new("ab").unwrap().within(&scope(&["ab"])), None);
}

#[test]
fn only_a_key_names_a_key_made_of_parts() {
    let parts = Key::from_parts(["ada", "k1"]).unwrap();
    for bytes in [parts.as_bytes(), b"\xffkey", b"\xffkey\0\x02a"] {
        assert_eq!(Key::new(bytes).unwrap_err().kind(), ErrorKind::InvalidKey);
        assert_eq!(bytes.into_key().unwrap_err().kind(), ErrorKind::InvalidKey);
    }
    assert_eq!((&parts).into_key().unwrap(), parts);
    assert_eq!(parts.clone().into_key().unwrap(), parts);
    assert_eq!(Key::from_bytes(parts.as_bytes()).unwrap(), parts);
    assert_eq!(Key::from_bytes(b"k1").unwrap(), Key::new("k1").unwrap());
    let long = [PARTS, &[2, 0], &[1; 512]].concat();
    for none in [&b""[..], b"\xffkey", b"\xffkey\0\x02a", &[1; 513], &long] {
        assert_eq!(Key::from_bytes(none).unwrap_err().kind(), ErrorKind::InvalidKey, "{none:?}");
    }
    assert_eq!(parts.as_str(), None);
    // Integers and text are all plain.
    for n in (0..70_000_u64).chain([u64::MAX, u64::MAX - 1]).flat_map(|n| [n.to_be_bytes(), n.to_le_bytes()]) {
        assert_eq!(Key::new(n).unwrap().as_bytes(), n);
    }
}

/// Tells at compile time whether a type is a key. The inherent constant is found before the one of the trait.
struct Probe<K>(std::marker::PhantomData<K>);

trait IsNoKey {
    const IS_KEY: bool = false;
}

impl<K> IsNoKey for Probe<K> {}

impl<K: IntoKey> Probe<K> {
    const IS_KEY: bool = true;
}

#[test]
fn the_text_of_a_uuid_is_a_key_and_the_uuid_is_not() {
    let no_key = [Probe::<Uuid>::IS_KEY, Probe::<&Uuid>::IS_KEY, Probe::<&&Uuid>::IS_KEY, Probe::<u64>::IS_KEY];
    assert_eq!(no_key, [false; 4]);
    let keys = [Probe::<&str>::IS_KEY, Probe::<[u8; 16]>::IS_KEY, Probe::<&Key>::IS_KEY];
    assert_eq!(keys, [true; 3]);
    assert_eq!(Key::new(Uuid::nil().to_string()).unwrap().as_str(), Some("00000000-0000-0000-0000-000000000000"));
}

#[test]
#[expect(clippy::needless_borrows_for_generic_args, reason = "the references are what is tested")]
fn every_type_of_text_and_bytes_names_the_same_key() {
    fn is_k1(key: impl IntoKey) {
        assert_eq!(key.into_key().unwrap().as_bytes(), b"k1");
    }
    let (text, bytes) = ("k1".to_owned(), b"k1".to_vec());
    is_k1("k1");
    is_k1(&"k1");
    is_k1(&text);
    is_k1(text.clone());
    is_k1(Box::<str>::from("k1"));
    is_k1(Arc::<str>::from("k1"));
    is_k1(&Arc::<str>::from("k1"));
    is_k1(Cow::Borrowed("k1"));
    is_k1(&Cow::<str>::Owned(text));
    is_k1(b"k1");
    is_k1(*b"k1");
    is_k1(&b"k1"[..]);
    is_k1(&bytes);
    is_k1(bytes.clone().into_boxed_slice());
    is_k1(Arc::<[u8]>::from(&b"k1"[..]));
    is_k1(Cow::Borrowed(&b"k1"[..]));
    is_k1(Value::from(bytes));
    is_k1(Key::new("k1").unwrap());
    is_k1(&Key::new("k1").unwrap());
}

#[test]
fn a_part_is_neither_empty_nor_made_of_parts() {
    let whole = Key::from_parts(["ada", "k1"]).unwrap();
    let empty = Key::from_parts(["ada", ""]).unwrap_err();
    assert_eq!(
        (empty.kind(), empty.to_string().as_str()),
        (ErrorKind::InvalidKey, "key is empty, it must have 1 to 512 bytes")
    );
    let nested = Key::from_parts([whole]).unwrap_err();
    assert_eq!(
        (nested.kind(), nested.to_string().as_str()),
        (ErrorKind::InvalidKey, "part /ada/k1 is itself made of parts")
    );
}

#[test]
fn a_scope_is_added_to_plain_keys_and_accepts_its_own_whole_keys() {
    let scope = |parts: &[&str]| parts.iter().map(|part| part.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
    let whole = Key::from_parts(["a", "b", "c"]).unwrap();
    for key in [Key::new("c").unwrap(), whole.clone()] {
        assert_eq!(key.inside(&scope(&["a", "b"])).unwrap(), whole);
    }
    assert_eq!(whole.clone().inside(&[]).unwrap(), whole);
    for other in [&["a"][..], &["a", "c"], &["a", "b", "c"], &["b"]] {
        let error = whole.clone().inside(&scope(other)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidKey, "{other:?}");
    }
}

#[test]
fn display_pads_and_shows_incomplete_parts_as_bytes() {
    assert_eq!(Key(b"\xffkey\0\x02a"[..].into()).to_string(), "%FFkey%00%02a");
    assert_eq!(format!("{:?}|{:>4}", Key::new("k").unwrap(), Key::new("k").unwrap()), "Key(k)|   k");
}

#[test]
fn text_is_parsed_unchanged() {
    let key: Key = "/a%41".parse().unwrap();
    assert_eq!(key.as_str(), Some("/a%41"));
    assert_eq!(Key::new(b"\xff").unwrap().as_str(), None);
    assert!("".parse::<Key>().is_err());
}

#[test]
fn serde_checks_what_it_reads() {
    let key = Key::new("k").unwrap();
    let bytes = bincode::serialize(&key).unwrap();
    assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0, b'k']);
    assert_eq!(bincode::deserialize::<Key>(&bytes).unwrap(), key);
    assert!(bincode::deserialize::<Key>(&[0; 8]).is_err());
    assert_eq!(serde_json::from_str::<Key>("[107]").unwrap(), key);
    assert!(serde_json::from_str::<Key>("[]").is_err());
    let parts = Key::from_parts(["k"]).unwrap();
    assert_eq!(bincode::deserialize::<Key>(&bincode::serialize(&parts).unwrap()).unwrap(), parts);
    assert!(serde_json::from_str::<Key>(&serde_json::to_string(&parts).unwrap()).is_err());
}

#[test]
fn generated_keys_are_ordered_and_random_bytes_differ() {
    let (first, second) = (Key::generate(), Key::generate());
    assert!(first < second);
    assert_eq!(Uuid::parse_str(first.as_str().unwrap()).unwrap().get_version_num(), 7);
    assert_ne!(random(), random());
}

#[test]
fn names_are_short_and_plain() {
    for name in ["a", "payments.v2_eu-1", &"x".repeat(64)] {
        assert!(check_name("manager", name).is_ok());
    }
    for name in ["", "A", "a/b", "a b", "\u{e9}", &"x".repeat(65)] {
        assert_eq!(check_name("manager", name).unwrap_err().kind(), ErrorKind::InvalidName);
    }
    let error = check_name("table", "Users\n").unwrap_err();
    assert!(error.to_string().starts_with("table name \"Users\\n\" has"), "{error}");
}
