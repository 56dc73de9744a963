// A click on the head of a column sorts the table; a second click turns the order round; cells without a number come last.
document.querySelectorAll(".results table").forEach(function (table) {
  var body = table.tBodies[0], heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach(function (head, column) {
    var button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", function () {
      var up = head.getAttribute("aria-sort") !== "ascending", numbers = head.classList.contains("number");
      var key = function (row) {
        var text = row.cells[column].textContent.trim();
        return numbers ? parseFloat(text.replace(/[≈,]/g, "").replace("−", "-")) : text.toLowerCase();
      };
      var rows = Array.from(body.rows).map(function (row) { return [key(row), row]; });
      rows.sort(function (a, b) {
        if (numbers && (isNaN(a[0]) || isNaN(b[0]))) return isNaN(a[0]) - isNaN(b[0]);
        return (a[0] < b[0] ? -1 : a[0] > b[0] ? 1 : 0) * (up ? 1 : -1);
      });
      rows.forEach(function (row) { body.append(row[1]); });
      heads.forEach(function (other) { other.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
    });
  });
});
