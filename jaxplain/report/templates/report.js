(() => {
  const strength = document.getElementById("strength");
  strength.addEventListener("input", () => {
    document.documentElement.style.setProperty("--strength", String(strength.value / 100));
  });
})();
