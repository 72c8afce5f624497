//! The certificate that a node, or a whole cluster, shows to its clients. Made or loaded at start;
//! shared by all shards. One certificate for all nodes keeps the fingerprint in a client's
//! description true when its session moves.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::digest;
use rtc_crypto::RTCCryptoProvider;
use rtc_crypto::providers::AwsLcRsProvider;
use rtc_dtls::config::{ClientAuthType, ConfigBuilder, ExtendedMasterSecretType, HandshakeConfig};
use rtc_dtls::extension::extension_use_srtp::SrtpProtectionProfile;

use crate::peer::srtp::Profile;

/// SHA-256 of a certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    /// As in `a=fingerprint:sha-256`: upper-case hexadecimal bytes with colons between.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let colon = if index == 0 { "" } else { ":" };
            write!(formatter, "{colon}{byte:02X}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Fingerprint({self})")
    }
}

impl FromStr for Fingerprint {
    type Err = CertificateError;

    /// From the form that `Display` gives; letters of either case.
    fn from_str(text: &str) -> Result<Self, CertificateError> {
        let mut bytes = [0; 32];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = value.ok_or(CertificateError::Fingerprint)?;
        }
        if parts.next().is_some() {
            return Err(CertificateError::Fingerprint);
        }
        Ok(Self(bytes))
    }
}

/// A certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Making it failed.
    #[error("cannot make a certificate: {0}")]
    Generate(String),
    /// The text is not a private key and a certificate in PEM.
    #[error("not a PEM file with a PKCS#8 private key and its certificate: {0}")]
    Pem(String),
    /// The certificate cannot be used for DTLS.
    #[error("the certificate cannot serve DTLS: {0}")]
    Unusable(String),
    /// A fingerprint is not 32 hexadecimal bytes with colons between.
    #[error("not a SHA-256 fingerprint")]
    Fingerprint,
}

/// An ECDSA P-256 certificate with its key.
pub struct Certificate {
    inner: rtc_dtls::crypto::Certificate,
    provider: Arc<dyn RTCCryptoProvider>,
    fingerprint: Fingerprint,
    /// Prepared for each SRTP profile, because a handshake must not choose between two.
    gcm: Arc<HandshakeConfig>,
    cm: Arc<HandshakeConfig>,
    data_only: Arc<HandshakeConfig>,
}

impl Certificate {
    /// Makes a new one, signed by itself.
    ///
    /// # Errors
    /// [`CertificateError::Generate`].
    pub fn generate() -> Result<Self, CertificateError> {
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let names = vec!["flotilla".to_owned()];
        let inner = rtc_dtls::crypto::Certificate::generate_self_signed(names, provider.crypto())
            .map_err(|error| CertificateError::Generate(error.to_string()))?;
        Self::prepare(inner, provider)
    }

    /// Reads a PEM text with one private key (PKCS#8) and one certificate, in any order.
    ///
    /// # Errors
    /// [`CertificateError::Pem`] if it is not that, [`CertificateError::Unusable`] if the key is
    /// another's.
    pub fn from_pem(pem: &str) -> Result<Self, CertificateError> {
        let block = |label: &str| {
            let (begin, end) = (
                format!("-----BEGIN {label}-----"),
                format!("-----END {label}-----"),
            );
            let start = pem.find(&begin)? + begin.len();
            let len = pem.get(start..)?.find(&end)?;
            pem.get(start..start + len)
        };
        let missing = |label: &str| CertificateError::Pem(format!("no {label}"));
        let key = block("PRIVATE KEY").ok_or_else(|| missing("PRIVATE KEY"))?;
        let certificate = block("CERTIFICATE").ok_or_else(|| missing("CERTIFICATE"))?;
        // The library wants the key first and writes its label in its own way.
        let text = format!(
            "-----BEGIN PRIVATE_KEY-----{key}-----END PRIVATE_KEY-----\n\
             -----BEGIN CERTIFICATE-----{certificate}-----END CERTIFICATE-----\n"
        );
        let provider: Arc<dyn RTCCryptoProvider> = Arc::new(AwsLcRsProvider::new());
        let inner = rtc_dtls::crypto::Certificate::from_pem(&text, provider.crypto())
            .map_err(|error| CertificateError::Pem(error.to_string()))?;
        // A certificate holds its public key as it is, whatever stands around it.
        let key = inner.private_key.signing_key.public_key().bytes;
        let der = inner.certificate.first().map(|der| der.as_ref());
        if !der.is_some_and(|der| der.windows(key.len()).any(|part| part == key)) {
            return Err(CertificateError::Unusable(
                "the private key is not the certificate's".to_owned(),
            ));
        }
        Self::prepare(inner, provider)
    }

    /// The PEM text that [`Certificate::from_pem`] reads. It holds the private key.
    ///
    /// # Errors
    /// [`CertificateError::Pem`] if the key cannot be exported.
    pub fn to_pem(&self) -> Result<String, CertificateError> {
        let text = self.inner.serialize_pem();
        let text = text.map_err(|error| CertificateError::Pem(error.to_string()))?;
        Ok(text.replace("PRIVATE_KEY", "PRIVATE KEY"))
    }

    /// Its fingerprint, for descriptions.
    #[must_use]
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    pub(super) fn provider(&self) -> Arc<dyn RTCCryptoProvider> {
        self.provider.clone()
    }

    /// The handshake's configuration for one profile, or for none.
    pub(super) fn config_for(&self, profile: Option<Profile>) -> Arc<HandshakeConfig> {
        match profile {
            Some(Profile::Aes128Gcm) => self.gcm.clone(),
            Some(Profile::Aes128CmSha1_80) => self.cm.clone(),
            None => self.data_only.clone(),
        }
    }

    fn prepare(
        inner: rtc_dtls::crypto::Certificate,
        provider: Arc<dyn RTCCryptoProvider>,
    ) -> Result<Self, CertificateError> {
        let der = inner.certificate.first();
        let der = der.ok_or_else(|| CertificateError::Pem("no certificate".to_owned()))?;
        let digest = digest::digest(&digest::SHA256, der);
        let mut fingerprint = [0; 32];
        fingerprint
            .iter_mut()
            .zip(digest.as_ref())
            .for_each(|(to, from)| *to = *from);

        let config = |profiles: Vec<SrtpProtectionProfile>| {
            ConfigBuilder::default()
                .with_crypto_provider(provider.clone())
                .with_certificates(vec![inner.clone()])
                .with_srtp_protection_profiles(profiles)
                .with_client_auth(ClientAuthType::RequireAnyClientCert)
                // Trust comes from the fingerprint, compared after the handshake.
                .with_insecure_skip_verify(true)
                .with_extended_master_secret(ExtendedMasterSecretType::Require)
                .build(false, None)
                .map(Arc::new)
                .map_err(|error| CertificateError::Unusable(error.to_string()))
        };
        Ok(Self {
            gcm: config(vec![SrtpProtectionProfile::Srtp_Aead_Aes_128_Gcm])?,
            cm: config(vec![SrtpProtectionProfile::Srtp_Aes128_Cm_Hmac_Sha1_80])?,
            data_only: config(Vec::new())?,
            fingerprint: Fingerprint(fingerprint),
            inner,
            provider,
        })
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Certificate")
            .field("fingerprint", &self.fingerprint)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_keeps_key_and_fingerprint() {
        let certificate = Certificate::generate().expect("generates");
        let pem = certificate.to_pem().expect("exports");
        assert!(pem.contains("BEGIN PRIVATE KEY"));
        let read = Certificate::from_pem(&pem).expect("reads");
        assert_eq!(read.fingerprint(), certificate.fingerprint());
        assert_eq!(read.to_pem().expect("exports"), pem);

        let at = pem.find("-----BEGIN CERTIFICATE").expect("there");
        let swapped = format!("{}{}", &pem[at..], &pem[..at]);
        let read = Certificate::from_pem(&swapped).expect("reads");
        assert_eq!(read.fingerprint(), certificate.fingerprint());
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let pem = || Certificate::generate().and_then(|c| c.to_pem());
        let (one, two) = (pem().expect("generates"), pem().expect("generates"));
        let at = |pem: &str| pem.find("-----BEGIN CERTIFICATE").expect("there");
        let mixed = format!("{}{}", &one[..at(&one)], &two[at(&two)..]);
        let read = Certificate::from_pem(&mixed);
        assert!(
            matches!(read, Err(CertificateError::Unusable(_))),
            "{read:?}"
        );
    }

    #[test]
    fn broken_pem_is_refused() {
        let pem = Certificate::generate()
            .and_then(|c| c.to_pem())
            .expect("generates");
        for text in [
            "",
            "-----BEGIN PRIVATE KEY-----",
            &pem[..pem.len() / 2],
            &pem.replace('M', "!"),
        ] {
            assert!(matches!(
                Certificate::from_pem(text),
                Err(CertificateError::Pem(_))
            ));
        }
    }

    #[test]
    fn fingerprint_text_goes_both_ways() {
        let fingerprint = Certificate::generate().expect("generates").fingerprint();
        let text = fingerprint.to_string();
        assert_eq!(text.len(), 95);
        assert_eq!(text.parse::<Fingerprint>().ok(), Some(fingerprint));
        assert_eq!(
            text.to_lowercase().parse::<Fingerprint>().ok(),
            Some(fingerprint)
        );
        for bad in [
            "",
            &text[1..],
            &text[..92],
            &format!("{text}:00"),
            &text.replace(':', ""),
        ] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
